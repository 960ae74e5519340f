//! Pointwise non-linearities.

use multiversion::multiversion;

use super::*;

/// The exact GELU, `x·Φ(x)`.
///
/// # Errors
/// Where the tensor library refuses.
pub fn gelu_erf(xs: &Tensor) -> TensorResult {
    op::apply(Pointwise::Gelu, &[xs])
}

/// OpenAI CLIP's approximation, `x·σ(1.702 x)`.
///
/// # Errors
/// Where the tensor library refuses.
pub fn quick_gelu(xs: &Tensor) -> TensorResult {
    op::apply(Pointwise::QuickGelu, &[xs])
}

/// The sigmoid-weighted linear unit, `x·σ(x)`.
///
/// # Errors
/// Where the tensor library refuses.
pub fn silu(xs: &Tensor) -> TensorResult {
    op::apply(Pointwise::Silu, &[xs])
}

/// The GELU by its approximation with a hyperbolic tangent (`gelu_pytorch_tanh`):
/// `x·½(1 + tanh(√(2/π)(x + 0.044715 x³)))`.
///
/// # Errors
/// Where the tensor library refuses.
pub fn gelu_tanh(xs: &Tensor) -> TensorResult {
    op::apply(Pointwise::GeluTanh, &[xs])
}

#[derive(Clone, Copy)]
pub enum Pointwise {
    Gelu,
    QuickGelu,
    Silu,
    GeluTanh,
}

/// Twice `√(2/π)`: `½(1 + tanh u)` is `σ(2u)`.
const TANH_SLOPE: f32 = 1.595_769_2;
const TANH_CUBE: f32 = 0.044_715;

/// Of `gelu_tanh`, the argument of its sigmoid.
#[inline(always)]
fn tanh_argument(x: f32) -> f32 {
    TANH_SLOPE * x * (x * x).mul_add(TANH_CUBE, 1.0)
}

/// The error function to about 1e-7: a ratio of polynomials on [−4, 4], outside which f32 cannot tell erf from ±1.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = s.mul_add(-2.726_142e-10, 2.770_681_4e-8);
    let p = s.mul_add(p, -2.101_024e-6);
    let p = s.mul_add(p, -5.692_506_4e-5);
    let p = s.mul_add(p, -7.349_906_3e-4);
    let p = s.mul_add(p, -2.954_6e-3);
    let p = s.mul_add(p, -1.609_603_3e-2);
    let q = s.mul_add(-1.456_607_2e-5, -2.133_740_6e-4);
    let q = s.mul_add(q, -1.682_827e-3);
    let q = s.mul_add(q, -7.373_329e-3);
    let q = s.mul_add(q, -1.426_473_9e-2);
    x * p / q
}

#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + slice::exp(-x))
}

/// `(2π)^(−1/2)`, the height of the normal density.
pub const NORMAL_PEAK: f32 = 0.398_942_3;

#[multiversion(targets = "simd")]
fn forward(kind: Pointwise, out: &mut [f32], x: &[f32]) {
    match kind {
        Pointwise::Gelu => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x * normal_cdf(x)),
        Pointwise::QuickGelu => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(1.702 * x)),
        Pointwise::Silu => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(x)),
        Pointwise::GeluTanh => {
            out.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid(tanh_argument(x)));
        }
    }
}

#[multiversion(targets = "simd")]
fn backward(kind: Pointwise, dx: &mut [f32], x: &[f32], dy: &[f32]) {
    let pairs = x.iter().zip(dy);
    match kind {
        Pointwise::Gelu => dx.iter_mut().zip(pairs).for_each(|(dx, (&x, dy))| {
            let density = NORMAL_PEAK * slice::exp(-0.5 * x * x);
            *dx = dy * x.mul_add(density, normal_cdf(x));
        }),
        Pointwise::QuickGelu => dx.iter_mut().zip(pairs).for_each(|(dx, (&x, dy))| {
            let s = sigmoid(1.702 * x);
            *dx = dy * (1.702 * x * s).mul_add(1.0 - s, s);
        }),
        Pointwise::Silu => dx.iter_mut().zip(pairs).for_each(|(dx, (&x, dy))| {
            let s = sigmoid(x);
            *dx = dy * (x * s).mul_add(1.0 - s, s);
        }),
        Pointwise::GeluTanh => dx.iter_mut().zip(pairs).for_each(|(dx, (&x, dy))| {
            let s = sigmoid(tanh_argument(x));
            let slope = TANH_SLOPE * (x * x).mul_add(3.0 * TANH_CUBE, 1.0);
            *dx = dy * (x * slope * s).mul_add(1.0 - s, s);
        }),
    }
}

impl Fused for Pointwise {
    const NAME: &'static str = "pointwise";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, ..]: [Argument; ARGUMENTS], out: &mut [f32]) {
        slice::by_rows(out, 1, |first, out| forward(*self, out, &xs.data[first..]));
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let count = call.count();
        let parameters = [Input(0), Output, I32(*self as i32), U64(count as u64)];
        call.launch("pointwise", cuda::elements(count), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let xs = arguments[0];
        // Written with exp: candle's fused sigmoid has no gradient on every device.
        match self {
            Self::Gelu => xs.gelu_erf(),
            Self::QuickGelu => xs.div(&((xs * -1.702)?.exp()? + 1.0)?),
            Self::Silu => xs.div(&(xs.neg()?.exp()? + 1.0)?),
            Self::GeluTanh => {
                let cubed = ((xs.sqr()? * f64::from(TANH_CUBE))? + 1.0)?;
                let argument = (xs.mul(&cubed)? * -f64::from(TANH_SLOPE))?;
                xs.div(&(argument.exp()? + 1.0)?)
            }
        }
    }

    fn gradients(
        &self,
        [xs, ..]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([Some(op::backward(PointwiseBackward(*self), &[xs, grad])?), None, None])
    }
}

/// (x, dy) to dx.
struct PointwiseBackward(Pointwise);

impl Fused for PointwiseBackward {
    const NAME: &'static str = "pointwise-backward";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        slice::by_rows(out, 1, |first, dx| backward(self.0, dx, &xs.data[first..], &dy.data[first..]));
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let count = call.count();
        let parameters = [Input(0), Input(1), Output, I32(self.0 as i32), U64(count as u64)];
        call.launch("pointwise_backward", cuda::elements(count), &parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn all_equal_their_composition_in_double_precision() {
        on_each_device(|device| {
            let xs = (var(device, &[4001], 0).as_tensor() * 4.0).unwrap();
            let xs = candle_core::Var::from_tensor(&xs).unwrap();
            same(&gelu_erf(&xs).unwrap(), &in_double(&xs, |x| x.gelu_erf()), &[&xs], 1e-6);
            same(&quick_gelu(&xs).unwrap(), &in_double(&xs, quick_gelu), &[&xs], 1e-6);
            same(&silu(&xs).unwrap(), &in_double(&xs, silu), &[&xs], 1e-6);
            same(&gelu_tanh(&xs).unwrap(), &in_double(&xs, gelu_tanh), &[&xs], 1e-6);
            assert!(distance(&gelu_tanh(&xs).unwrap(), &xs.gelu().unwrap()) < 1e-6);
        });
    }

    #[test]
    fn all_compute_in_half_precision() {
        on_each_device(|device| {
            let xs = var(device, &[500], 0);
            same_in_half(&[&xs], |xs| gelu_erf(&xs[0]));
            same_in_half(&[&xs], |xs| quick_gelu(&xs[0]));
            same_in_half(&[&xs], |xs| silu(&xs[0]));
            same_in_half(&[&xs], |xs| gelu_tanh(&xs[0]));
        });
    }
}
