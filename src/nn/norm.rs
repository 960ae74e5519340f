//! Layer normalisation over channels.

use candle_core::D;
use multiversion::multiversion;

use super::*;

/// `y = (x − mean) / √(variance + eps) · weight + bias` over the last axis; without weight and bias, no affine part.
///
/// # Shapes
/// `xs` (…, C), `weight` and `bias` (C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn layer_norm(xs: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> TensorResult {
    let op = LayerNorm { eps };
    match affine {
        Some((weight, bias)) => op::apply(op, &[xs, weight, bias]),
        None => op::apply(op, &[xs]),
    }
}

struct LayerNorm {
    eps: f64,
}

/// Mean and reciprocal standard deviation of one row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let scale = 1.0 / x.len() as f32;
    let mean = slice::sum(x, |x| x) * scale;
    let variance = slice::sum(x, |x| (x - mean) * (x - mean)) * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[multiversion(targets = "simd")]
pub(super) fn normalise(out: &mut [f32], width: usize, x: &[f32], w: &[f32], b: &[f32], eps: f32) {
    for (y, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let (mean, rstd) = moments(x, eps);
        if w.is_empty() {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * rstd);
        } else {
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = ((x - mean) * rstd).mul_add(*w, *b);
            }
        }
    }
}

#[multiversion(targets = "simd")]
pub(super) fn normalise_backward(dx: &mut [f32], width: usize, x: &[f32], w: &[f32], dy: &[f32], eps: f32) {
    let mut g = vec![0f32; width];
    let share = 1.0 / width as f32;
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
        let (mean, rstd) = moments(x, eps);
        if w.is_empty() {
            g.copy_from_slice(dy);
        } else {
            g.iter_mut().zip(dy).zip(w).for_each(|((g, dy), w)| *g = dy * w);
        }
        let mean_g = slice::sum(&g, |g| g) * share;
        let mean_gx = slice::sum_of_pairs(&g, x, |g, x| g * (x - mean) * rstd) * share;
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(&g) {
            *dx = rstd * (g - mean_g - (x - mean) * rstd * mean_gx);
        }
    }
}

#[multiversion(targets = "simd")]
fn affine_gradients(dw: &mut [f32], db: &mut [f32], x: &[f32], dy: &[f32], eps: f32) {
    let width = dw.len();
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        let (mean, rstd) = moments(x, eps);
        for (((dw, db), x), dy) in dw.iter_mut().zip(&mut *db).zip(x).zip(dy) {
            *dw += dy * (x - mean) * rstd;
            *db += dy;
        }
    }
}

impl Fused for LayerNorm {
    const NAME: &'static str = "layer-norm";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, weight, bias]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match xs {
            [.., width] if *width > 0 && weight == bias && (weight == [0] || weight == [*width]) => {
                Ok(xs.into())
            }
            _ => candle_core::bail!("layer-norm: input {xs:?}, weight {weight:?}, bias {bias:?}"),
        }
    }

    fn cpu(&self, [xs, weight, bias]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let width = xs.dims[xs.dims.len() - 1];
        slice::by_rows(out, width, |first, out| {
            normalise(out, width, &xs.data[first * width..], &weight.data, &bias.data, self.eps as f32);
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, width) = (call.count(), call.width(0));
        let affine = I32(i32::from(call.has(1)));
        let parameters =
            [Input(0), Input(1), Input(2), Output, U32(width as u32), affine, F32(self.eps as f32)];
        call.launch("layer_norm", cuda::rows(count / width, width), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let xs = arguments[0];
        let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let ys = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        match (op::present(arguments, 1), op::present(arguments, 2)) {
            (Some(weight), Some(bias)) => ys.broadcast_mul(weight)?.broadcast_add(bias),
            _ => Ok(ys),
        }
    }

    fn gradients(
        &self,
        [xs, weight, bias]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let eps = self.eps;
        let dx = wanted(xs, || op::backward(LayerNormBackward { eps }, &[xs, grad, weight]))?;
        if !weight.track_op() && !bias.track_op() {
            return Ok([dx, None, None]);
        }
        let both = op::backward(LayerNormAffine { eps }, &[xs, grad])?; // (2, C)
        Ok([dx, wanted(weight, || both.get(0))?, wanted(bias, || both.get(1))?])
    }
}

/// (x, dy, weight) to dx.
struct LayerNormBackward {
    eps: f64,
}

impl Fused for LayerNormBackward {
    const NAME: &'static str = "layer-norm-backward";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, dy, weight]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let width = xs.dims[xs.dims.len() - 1];
        slice::by_rows(out, width, |first, dx| {
            let from = first * width;
            normalise_backward(dx, width, &xs.data[from..], &weight.data, &dy.data[from..], self.eps as f32);
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, width) = (call.count(), call.width(0));
        let affine = I32(i32::from(call.has(2)));
        let parameters =
            [Input(0), Input(1), Input(2), Output, U32(width as u32), affine, F32(self.eps as f32)];
        call.launch("layer_norm_backward", cuda::rows(count / width, width), &parameters)
    }
}

/// (x, dy) to the gradients of weight and bias, (2, C).
struct LayerNormAffine {
    eps: f64,
}

impl Fused for LayerNormAffine {
    const NAME: &'static str = "layer-norm-affine";

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok((2, xs[xs.len() - 1]).into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (dw, db) = out.split_at_mut(out.len() / 2);
        affine_gradients(dw, db, &xs.data, &dy.data, self.eps as f32);
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let normed = LayerNorm { eps: self.eps }.compose(&arguments[..1])?;
        let columns = |xs: &Tensor| op::backward(super::linear::ColumnSums, &[xs]);
        Tensor::stack(&[columns(&(normed * arguments[1])?)?, columns(arguments[1])?], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn layer_norm_equals_its_composition() {
        on_each_device(|device| {
            for width in [24, 128, 37] {
                let (xs, w, b) =
                    (var(device, &[2, 5, width], 0), var(device, &[width], 1), var(device, &[width], 2));
                let composed = in_double(&xs, |x| layer_norm(x, None, 1e-6));
                same(&layer_norm(&xs, None, 1e-6).unwrap(), &composed, &[&xs], 3e-6);
                let ours = layer_norm(&xs, Some((&w, &b)), 1e-5).unwrap();
                let (xd, wd, bd) = (double(&xs), double(&w), double(&b));
                let theirs = layer_norm(&xd, Some((&wd, &bd)), 1e-5).unwrap();
                same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &w, &b], 3e-6);
            }
        });
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let (xs, w, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            same_in_half(&[&xs, &w, &b], |xs| layer_norm(&xs[0], Some((&xs[1], &xs[2])), 1e-5));
        });
    }
}
