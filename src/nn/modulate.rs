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
    op::apply(Modulate, &[xs, scale, shift])
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

impl Fused for Modulate {
    const NAME: &'static str = "modulate";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, scale, shift]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match xs {
            [batch, _, width] if scale == [*batch, *width] && shift == scale => Ok(xs.into()),
            _ => candle_core::bail!("modulate: input {xs:?}, scale {scale:?}, shift {shift:?}"),
        }
    }

    fn cpu(&self, [xs, scale, shift]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (positions, width) = (xs.dims[1], xs.dims[2]);
        slice::by_rows(out, width, |first, out| {
            forward(out, first, (positions, width), &xs.data, &scale.data, &shift.data);
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let count = call.count();
        let (positions, width) = (U32(call.dims(0)[1] as u32), U32(call.dims(0)[2] as u32));
        let parameters = [Input(0), Input(1), Input(2), Output, positions, width, U64(count as u64)];
        call.launch("modulate", cuda::elements(count), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, scale, shift) = (arguments[0], arguments[1], arguments[2]);
        xs.broadcast_mul(&(scale + 1.0)?.unsqueeze(1)?)?.broadcast_add(&shift.unsqueeze(1)?)
    }

    fn gradients(
        &self,
        [xs, scale, shift]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let dx = wanted(xs, || op::backward(Self, &[grad, scale, &scale.zeros_like()?]))?;
        if !scale.track_op() && !shift.track_op() {
            return Ok([dx, None, None]);
        }
        let both = op::backward(ModulateSums, &[xs, grad])?; // (2, B, C)
        Ok([dx, wanted(scale, || both.get(0))?, wanted(shift, || both.get(1))?])
    }
}

/// (x, dy) to the gradients of scale and shift, (2, B, C).
struct ModulateSums;

impl Fused for ModulateSums {
    const NAME: &'static str = "modulate-sums";

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok((2, xs[0], xs[2]).into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (da, db) = out.split_at_mut(out.len() / 2);
        sums(da, db, (xs.dims[1], xs.dims[2]), &xs.data, &dy.data);
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        Tensor::stack(&[(arguments[0] * arguments[1])?.sum(1)?, arguments[1].sum(1)?], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_its_composition() {
        on_each_device(|device| {
            let (xs, a, b) =
                (var(device, &[3, 7, 24], 0), var(device, &[3, 24], 1), var(device, &[3, 24], 2));
            let ours = modulate(&xs, &a, &b).unwrap();
            let theirs = modulate(&double(&xs), &double(&a), &double(&b)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &a, &b], 3e-6);
        });
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let (xs, a, b) =
                (var(device, &[3, 7, 24], 0), var(device, &[3, 24], 1), var(device, &[3, 24], 2));
            same_in_half(&[&xs, &a, &b], |xs| modulate(&xs[0], &xs[1], &xs[2]));
        });
    }
}
