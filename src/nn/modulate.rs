//! The affine modulation of all positions of a sample by its timestep.

use multiversion::multiversion;

use super::*;

/// `y = x·(1 + scale) + shift`, each sample by its own vectors.
///
/// # Shapes
/// `xs` (B, N, C), `scale` and `shift` (B, C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn modulate(xs: &Tensor, scale: &Tensor, shift: &Tensor) -> TensorResult {
    if !is_fused(xs) {
        return xs.broadcast_mul(&(scale + 1.0)?.unsqueeze(1)?)?.broadcast_add(&shift.unsqueeze(1)?);
    }
    xs.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, Modulate)
}

struct Modulate;

#[multiversion(targets = "simd")]
fn forward(
    out: &mut [f32],
    first: usize,
    (positions, width): (usize, usize),
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
) {
    for (i, y) in out.chunks_exact_mut(width).enumerate() {
        let row = first + i;
        let vectors = row / positions * width;
        let (a, b) = (&scale[vectors..][..width], &shift[vectors..][..width]);
        for (((y, x), a), b) in y.iter_mut().zip(&x[row * width..][..width]).zip(a).zip(b) {
            *y = x.mul_add(1.0 + a, *b);
        }
    }
}

/// Per sample, `Σ dy·x` and `Σ dy` over the positions.
#[multiversion(targets = "simd")]
fn sums(da: &mut [f32], db: &mut [f32], (positions, width): (usize, usize), x: &[f32], dy: &[f32]) {
    for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact(width)).enumerate() {
        let vectors = row / positions * width;
        let sums = da[vectors..][..width].iter_mut().zip(&mut db[vectors..][..width]);
        for (((da, db), x), dy) in sums.zip(x).zip(dy) {
            *da = x.mul_add(*dy, *da);
            *db += dy;
        }
    }
}

impl CustomOp3 for Modulate {
    fn name(&self) -> &'static str {
        "modulate"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (batch, positions, width) = xs_layout.shape().dims3()?;
        if scale_layout.shape().dims() != [batch, width] || shift_layout.shape().dims() != [batch, width] {
            candle_core::bail!("modulate: input {:?}, scale {:?}", xs_layout.shape(), scale_layout.shape());
        }
        let x = slice::of(xs, xs_layout)?;
        let (scale, shift) = (slice::of(scale, scale_layout)?, slice::of(shift, shift_layout)?);
        let mut out = vec![0f32; x.len()];
        slice::by_rows(&mut out, width, |first, out| {
            forward(out, first, (positions, width), x, scale, shift)
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, positions, width) = xs.dims3()?;
        let device = xs.device();
        slice::with(&[xs, scale, grad], |slices| {
            let [x, a, dy] = slices else { unreachable!("three tensors give three slices") };
            let mut dx = vec![0f32; x.len()];
            let none = vec![0f32; a.len()];
            slice::by_rows(&mut dx, width, |first, dx| forward(dx, first, (positions, width), dy, a, &none));
            let (mut da, mut db) = (vec![0f32; batch * width], vec![0f32; batch * width]);
            if scale.track_op() || shift.track_op() {
                sums(&mut da, &mut db, (positions, width), x, dy);
            }
            let of = |t: &Tensor, g| t.track_op().then(|| Tensor::from_vec(g, t.shape(), device)).transpose();
            Ok((Some(Tensor::from_vec(dx, xs.shape(), device)?), of(scale, da)?, of(shift, db)?))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_its_composition() {
        let (xs, a, b) = (var(&[3, 7, 24], 0), var(&[3, 24], 1), var(&[3, 24], 2));
        let ours = modulate(&xs, &a, &b).unwrap();
        let theirs = modulate(&double(&xs), &double(&a), &double(&b)).unwrap();
        same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &a, &b], 3e-6);
    }
}
