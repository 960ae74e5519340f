//! Rotary positions: pairs of a head's channels, half a head apart, turned by angles that grow with the position.

use candle_core::D;
use multiversion::multiversion;

use super::*;

/// Turns every head of `xs`: the first half becomes `x₁ cos − x₂ sin`, the second `x₂ cos + x₁ sin`.
///
/// # Shapes
/// `xs` (B, N, heads·d), `angles` (B, N, d): the d/2 cosines of each position, then its d/2 sines, in single precision.
///
/// # Errors
/// Where the shapes do not fit.
pub fn rotary(xs: &Tensor, angles: &Tensor) -> TensorResult {
    op::apply(Rotary { back: false }, &[xs, angles])
}

struct Rotary {
    /// Against the angles: the way back of a turn.
    back: bool,
}

#[multiversion(targets = "simd")]
fn turn(out: &mut [f32], x: &[f32], angles: &[f32], depth: usize, width: usize, sign: f32) {
    let half = depth / 2;
    let rows = x.chunks_exact(width).zip(angles.chunks_exact(depth));
    for (out, (x, angles)) in out.chunks_exact_mut(width).zip(rows) {
        let (cosines, sines) = angles.split_at(half);
        for (out, x) in out.chunks_exact_mut(depth).zip(x.chunks_exact(depth)) {
            let ((y1, y2), (x1, x2)) = (out.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                let sine = sign * sines[i];
                y1[i] = x1[i] * cosines[i] - x2[i] * sine;
                y2[i] = x2[i] * cosines[i] + x1[i] * sine;
            }
        }
    }
}

impl Fused for Rotary {
    const NAME: &'static str = "rotary";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, angles, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match (xs, angles) {
            ([batch, tokens, width], [b, n, depth])
                if (batch, tokens) == (b, n) && *depth > 0 && depth % 2 == 0 && width % depth == 0 =>
            {
                Ok(xs.into())
            }
            _ => candle_core::bail!("rotary: input {xs:?}, angles {angles:?}"),
        }
    }

    fn cpu(&self, [xs, angles, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (width, depth) = (xs.dims[2], angles.dims[2]);
        let sign = if self.back { -1.0 } else { 1.0 };
        slice::by_rows(out, width, |first, out| {
            turn(out, &xs.data[first * width..], &angles.data[first * depth..], depth, width, sign);
        });
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, angles) = (arguments[0], arguments[1].to_dtype(arguments[0].dtype())?);
        let (batch, tokens, width) = xs.dims3()?;
        let depth = angles.dim(D::Minus1)?;
        let half = depth / 2;
        let pairs = xs.reshape((batch, tokens, width / depth, depth))?;
        let part = |xs: &Tensor, i: usize| xs.narrow(D::Minus1, i * half, half)?.contiguous();
        let (x1, x2) = (part(&pairs, 0)?, part(&pairs, 1)?);
        let (cosines, sines) = (part(&angles, 0)?.unsqueeze(2)?, part(&angles, 1)?.unsqueeze(2)?); // (B, N, 1, d/2)
        let sines = if self.back { sines.neg()? } else { sines };
        let y1 = (x1.broadcast_mul(&cosines)? - x2.broadcast_mul(&sines)?)?;
        let y2 = (x2.broadcast_mul(&cosines)? + x1.broadcast_mul(&sines)?)?;
        Tensor::cat(&[y1, y2], D::Minus1)?.reshape((batch, tokens, width))
    }

    fn gradients(
        &self,
        [xs, angles, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let back = !self.back;
        Ok([wanted(xs, || op::backward(Rotary { back }, &[grad, angles]))?, None, None])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    fn angles(device: &Device) -> Tensor {
        let angles: Vec<f32> = (0..2 * 5 * 4).map(|i| 0.37 * i as f32).collect();
        let angles = Tensor::from_vec(angles, (2, 5, 4), device).unwrap();
        Tensor::cat(&[angles.cos().unwrap(), angles.sin().unwrap()], 2).unwrap()
    }

    #[test]
    fn equals_its_composition_and_turns_back() {
        on_each_device(|device| {
            let (xs, angles) = (var(device, &[2, 5, 24], 0), angles(device));
            let ours = rotary(&xs, &angles).unwrap();
            let theirs = rotary(&double(&xs), &double(&angles)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs], 2e-6);
            let back = op::apply(Rotary { back: true }, &[&ours, &angles]).unwrap();
            assert!(distance(&back, &xs) < 1e-6);
            assert!(rotary(&xs, &angles.narrow(2, 0, 6).unwrap()).is_ok());
            assert!(rotary(&xs, &angles.narrow(2, 0, 5).unwrap()).is_err());
        });
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let xs = var(device, &[2, 5, 24], 0);
            same_in_half(&[&xs], |xs| rotary(&xs[0], &angles(device)));
        });
    }
}
