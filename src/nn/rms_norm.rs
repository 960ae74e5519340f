//! Root-mean-square normalisation, as in Qwen2's blocks.

use candle_core::D;
use multiversion::multiversion;

use super::*;

/// `y = x / √(mean of x² + eps) · weight` over the last axis; the mean is in single precision whatever the argument's.
///
/// # Shapes
/// `xs` (…, C), `weight` (C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> TensorResult {
    op::apply(RmsNorm { eps }, &[xs, weight])
}

#[derive(Clone, Copy)]
struct RmsNorm {
    eps: f64,
}

/// The reciprocal root mean square of one row.
#[inline(always)]
fn scale(x: &[f32], eps: f32) -> f32 {
    1.0 / (slice::sum(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

#[multiversion(targets = "simd")]
fn normalise(out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    for (y, x) in out.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
        let scale = scale(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = w * (x * scale);
        }
    }
}

#[multiversion(targets = "simd")]
fn normalise_backward(dx: &mut [f32], x: &[f32], w: &[f32], dy: &[f32], eps: f32) {
    let width = w.len();
    let mut g = vec![0f32; width];
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
        let scale = scale(x, eps);
        g.iter_mut().zip(dy).zip(w).for_each(|((g, dy), w)| *g = dy * w);
        let mean = slice::sum_of_pairs(&g, x, |g, x| g * (x * scale)) / width as f32;
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(&g) {
            *dx = scale * (g - x * scale * mean);
        }
    }
}

#[multiversion(targets = "simd")]
fn weight_gradient(dw: &mut [f32], x: &[f32], dy: &[f32], eps: f32) {
    for (x, dy) in x.chunks_exact(dw.len()).zip(dy.chunks_exact(dw.len())) {
        let scale = scale(x, eps);
        dw.iter_mut().zip(x).zip(dy).for_each(|((dw, x), dy)| *dw += dy * (x * scale));
    }
}

impl Fused for RmsNorm {
    const NAME: &'static str = "rms-norm";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, weight, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match xs {
            [.., width] if *width > 0 && weight == [*width] => Ok(xs.into()),
            _ => candle_core::bail!("rms-norm: input {xs:?}, weight {weight:?}"),
        }
    }

    fn cpu(&self, [xs, weight, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let width = weight.data.len();
        slice::by_rows(out, width, |first, out| {
            normalise(out, &xs.data[first * width..], &weight.data, self.eps as f32);
        });
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, weight) = (arguments[0], arguments[1]);
        let wide = match xs.dtype() {
            candle_core::DType::F64 => xs.clone(),
            _ => xs.to_dtype(candle_core::DType::F32)?,
        };
        let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
        wide.broadcast_div(&scale)?.to_dtype(xs.dtype())?.broadcast_mul(weight)
    }

    fn gradients(
        &self,
        [xs, weight, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([
            wanted(xs, || op::backward(RmsNormBackward(*self), &[xs, grad, weight]))?,
            wanted(weight, || op::backward(RmsNormWeight(*self), &[xs, grad]))?,
            None,
        ])
    }
}

/// (x, dy, weight) to dx.
struct RmsNormBackward(RmsNorm);

impl Fused for RmsNormBackward {
    const NAME: &'static str = "rms-norm-backward";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, dy, weight]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let width = weight.data.len();
        slice::by_rows(out, width, |first, dx| {
            let from = first * width;
            normalise_backward(dx, &xs.data[from..], &weight.data, &dy.data[from..], self.0.eps as f32);
        });
    }
}

/// (x, dy) to the weight's gradient.
struct RmsNormWeight(RmsNorm);

impl Fused for RmsNormWeight {
    const NAME: &'static str = "rms-norm-weight";

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs[xs.len() - 1].into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        weight_gradient(out, &xs.data, &dy.data, self.0.eps as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_its_composition_in_value_and_gradient() {
        on_each_device(|device| {
            for width in [24, 128, 37] {
                let (xs, w) = (var(device, &[2, 5, width], 0), var(device, &[width], 1));
                let theirs = rms_norm(&double(&xs), &double(&w), 1e-6).unwrap();
                let theirs = theirs.to_dtype(candle_core::DType::F32).unwrap();
                same(&rms_norm(&xs, &w, 1e-6).unwrap(), &theirs, &[&xs, &w], 3e-6);
            }
        });
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let (xs, w) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1));
            same_in_half(&[&xs, &w], |xs| rms_norm(&xs[0], &xs[1], 1e-6));
        });
    }
}
