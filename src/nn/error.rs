//! How far predictions are from their targets.

use candle_core::D;
use multiversion::multiversion;

use super::*;

/// Each sample's mean squared error (MSE) over all its elements.
///
/// # Shapes
/// `pred` and `target` (B, …); result (B).
///
/// # Errors
/// Where the shapes differ or there is no element.
pub fn squared_error(pred: &Tensor, target: &Tensor) -> TensorResult {
    if pred.dims() != target.dims() || pred.elem_count() == 0 {
        candle_core::bail!("squared-error: predictions {:?}, targets {:?}", pred.dims(), target.dims());
    }
    op::apply(SquaredError, &[pred, target])
}

struct SquaredError;

/// Elements that are summed in single precision; such sums are added in double.
const BLOCK: usize = 4096;

#[multiversion(targets = "simd")]
fn mean_squares(x: &[f32], y: &[f32]) -> f32 {
    let blocks = x.chunks(BLOCK).zip(y.chunks(BLOCK));
    let total: f64 =
        blocks.map(|(x, y)| f64::from(slice::sum_of_pairs(x, y, |x, y| (x - y) * (x - y)))).sum();
    (total / x.len() as f64) as f32
}

#[multiversion(targets = "simd")]
fn differences(out: &mut [f32], x: &[f32], y: &[f32], factor: f32) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = (x - y) * factor;
    }
}

impl Fused for SquaredError {
    const NAME: &'static str = "squared-error";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [pred, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(pred[0].into())
    }

    fn cpu(&self, [pred, target, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let sample = pred.data.len() / out.len();
        let samples = pred.data.chunks_exact(sample).zip(target.data.chunks_exact(sample));
        out.iter_mut().zip(samples).for_each(|(out, (x, y))| *out = mean_squares(x, y));
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let samples = call.count();
        let sample = call.dims(0)[1..].iter().product::<usize>();
        let parameters = [Input(0), Input(1), Output, U64(sample as u64)];
        call.launch("squared_error", cuda::rows(samples, sample), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        (arguments[0] - arguments[1])?.sqr()?.flatten_from(1)?.mean(D::Minus1)
    }

    fn gradients(
        &self,
        [pred, target, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let dx = wanted(pred, || op::backward(SquaredErrorBackward, &[pred, target, grad]))?;
        let dy = wanted(target, || op::backward(SquaredErrorBackward, &[target, pred, grad]))?;
        Ok([dx, dy, None])
    }
}

/// (x, y, gradient of the errors) to the gradient of x.
struct SquaredErrorBackward;

impl Fused for SquaredErrorBackward {
    const NAME: &'static str = "squared-error-backward";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, ys, grad]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let sample = out.len() / grad.data.len();
        slice::by_rows(out, sample, |first, out| {
            for (i, out) in out.chunks_exact_mut(sample).enumerate() {
                let at = (first + i) * sample;
                let factor = 2.0 * grad.data[first + i] / sample as f32;
                differences(out, &xs.data[at..at + sample], &ys.data[at..at + sample], factor);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, samples) = (call.count(), call.width(2));
        let parameters =
            [Input(0), Input(1), Input(2), Output, U64((count / samples) as u64), U64(count as u64)];
        call.launch("squared_error_backward", cuda::elements(count), &parameters)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_its_composition() {
        on_each_device(|device| {
            let (pred, target) = (var(device, &[3, 5, 31, 33], 0), var(device, &[3, 5, 31, 33], 1));
            let ours = squared_error(&pred, &target).unwrap();
            let theirs = squared_error(&double(&pred), &double(&target)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&pred, &target], 1e-6);
        });
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let error = squared_error(&var(&Device::Cpu, &[2, 3], 0), &var(&Device::Cpu, &[2, 4], 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("[2, 3]") && error.contains("[2, 4]"), "{error}");
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let (pred, target) = (var(device, &[3, 5, 8, 8], 0), var(device, &[3, 5, 8, 8], 1));
            same_in_half(&[&pred, &target], |xs| squared_error(&xs[0], &xs[1]));
        });
    }
}
