//! Stage C's global response normalisation, alone and after its GELU.

#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::CudaSlice;
use multiversion::multiversion;

use super::activation::{NORMAL_PEAK, Pointwise, normal_cdf};
use super::linear::ColumnSums;
use super::*;

/// Global response normalisation: `y = γ·(x·n) + β + x`, `n = ‖x‖ / (mean over channels of ‖x‖ + 1e-6)`, where
/// `‖x‖` is each channel's Euclidean norm over all positions.
///
/// # Shapes
/// `xs` (B, N, C), `gamma` and `beta` (C).
///
/// # Source
/// `GlobalResponseNorm` of Stable Cascade (ConvNeXt V2).
///
/// # Errors
/// Where the shapes do not fit.
pub fn grn(xs: &Tensor, gamma: &Tensor, beta: &Tensor) -> TensorResult {
    op::apply(Grn, &[xs, gamma, beta])
}

const EPSILON: f64 = 1e-6;

struct Grn;

/// From each channel's sum of squares to its norm, in place; the mean of the norms plus epsilon.
#[inline(always)]
fn mean_norm(norms: &mut [f32]) -> f32 {
    norms.iter_mut().for_each(|n| *n = n.sqrt());
    slice::sum(norms, |norm| norm) / norms.len() as f32 + EPSILON as f32
}

/// Each channel's norm over the positions of one sample, and their mean plus epsilon.
#[multiversion(targets = "simd")]
fn response(x: &[f32], width: usize) -> (Vec<f32>, f32) {
    let mut norms = vec![0f32; width];
    for x in x.chunks_exact(width) {
        norms.iter_mut().zip(x).for_each(|(n, x)| *n = x.mul_add(*x, *n));
    }
    let mean = mean_norm(&mut norms);
    (norms, mean)
}

#[multiversion(targets = "simd")]
fn respond(y: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32]) {
    let width = gamma.len();
    let (mut gain, mean) = response(x, width);
    gain.iter_mut().zip(gamma).for_each(|(n, g)| *n = (*n / mean).mul_add(*g, 1.0));
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        for (((y, x), gain), beta) in y.iter_mut().zip(x).zip(&gain).zip(beta) {
            *y = x.mul_add(*gain, *beta);
        }
    }
}

/// `totals[c] += Σ x[·][c]·dy[·][c]`.
#[multiversion(targets = "simd")]
fn add_products(totals: &mut [f32], x: &[f32], dy: &[f32]) {
    let width = totals.len();
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
        for ((total, x), dy) in totals.iter_mut().zip(x).zip(dy) {
            *total = x.mul_add(*dy, *total);
        }
    }
}

/// How the gradient of the response follows from that of the result: `dx = gain·dy + pull·x`, channel by channel.
struct Pull {
    gain: Vec<f32>,
    pull: Vec<f32>,
}

impl Pull {
    /// From the norms, their mean plus epsilon, and `products = Σ_n dy·x`.
    #[inline(always)]
    fn of(norms: &[f32], mean: f32, gamma: &[f32], products: &[f32]) -> Self {
        let weighted: Vec<f32> = products.iter().zip(gamma).map(|(product, gamma)| product * gamma).collect();
        let products = slice::sum_of_pairs(&weighted, norms, |weighted, norm| weighted * norm);
        let shared = products / (mean * mean * gamma.len() as f32);
        let gain = norms.iter().zip(gamma).map(|(norm, gamma)| (norm / mean).mul_add(*gamma, 1.0)).collect();
        let pull = |(norm, weighted): (&f32, &f32)| {
            let da = weighted / mean - shared;
            if *norm > 0.0 { da / norm } else { 0.0 }
        };
        let pull = norms.iter().zip(&weighted).map(pull).collect();
        Self { gain, pull }
    }
}

#[multiversion(targets = "simd")]
fn respond_backward(dx: &mut [f32], x: &[f32], dy: &[f32], gamma: &[f32], products: &[f32]) {
    let width = gamma.len();
    let (norms, mean) = response(x, width);
    let Pull { gain, pull } = Pull::of(&norms, mean, gamma, products);
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
        for ((((dx, x), dy), gain), pull) in dx.iter_mut().zip(x).zip(dy).zip(&gain).zip(&pull) {
            *dx = dy.mul_add(*gain, x * pull);
        }
    }
}

impl Fused for Grn {
    const NAME: &'static str = "grn";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, gamma, beta]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match xs {
            [_, _, width] if gamma == [*width] && beta == [*width] => Ok(xs.into()),
            _ => candle_core::bail!("grn: input {xs:?}, gamma {gamma:?}, beta {beta:?}"),
        }
    }

    fn cpu(&self, [xs, gamma, beta]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let sample = xs.dims[1] * xs.dims[2];
        slice::by_rows(out, sample, |first, out| {
            for (y, x) in out.chunks_exact_mut(sample).zip(xs.data[first * sample..].chunks_exact(sample)) {
                respond(y, x, &gamma.data, &beta.data);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, responses) = (call.count(), Responses::of(call, None)?);
        let Responses { norms, means, sizes: [positions, width], .. } = &responses;
        let parameters = [
            Input(0),
            Input(1),
            Input(2),
            Workspace(norms),
            Workspace(means),
            Output,
            *positions,
            *width,
            U64(count as u64),
        ];
        call.launch("grn", cuda::elements(count), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, gamma, beta) = (arguments[0], arguments[1], arguments[2]);
        let norms = xs.sqr()?.sum_keepdim(1)?.sqrt()?; // (B, 1, C)
        let mean = (norms.mean_keepdim(2)? + EPSILON)?;
        let scaled = xs.broadcast_mul(&norms.broadcast_div(&mean)?)?;
        scaled.broadcast_mul(gamma)?.broadcast_add(beta)?.add(xs)
    }

    fn gradients(
        &self,
        [xs, gamma, beta]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([
            wanted(xs, || op::backward(GrnBackward, &[xs, grad, gamma]))?,
            wanted(gamma, || op::backward(GrnGamma, &[xs, grad]))?,
            wanted(beta, || op::backward(ColumnSums, &[grad]))?,
        ])
    }
}

/// What both directions need of each sample first, on the device.
#[cfg(feature = "cuda")]
struct Responses {
    /// (B, C)
    norms: CudaSlice<f32>,
    /// Σ_n x·dy, (B, C); empty on the way forward.
    products: CudaSlice<f32>,
    /// The norms' mean, and what all channels share of the gradient, (B, 2).
    means: CudaSlice<f32>,
    /// Positions and channels.
    sizes: [Parameter<'static>; 2],
}

#[cfg(feature = "cuda")]
impl Responses {
    /// `grad` is the argument that holds dy; γ is then the third, else the second.
    fn of<T: cuda::Element>(call: &mut cuda::Call<T>, grad: Option<usize>) -> TensorResult<Self> {
        let [batch, positions, width] = [0, 1, 2].map(|axis| call.dims(0)[axis]);
        let sizes = [U32(positions as u32), U32(width as u32)];
        let (norms, means) = (call.workspace(batch * width)?, call.workspace(2 * batch)?);
        let products = call.workspace(if grad.is_some() { batch * width } else { 0 })?;
        let grid = cuda::columns(batch, width);
        call.launch(
            "column_products",
            grid,
            &[Input(0), Input(0), Workspace(&norms), sizes[0], sizes[1], I32(1)],
        )?;
        if let Some(grad) = grad {
            let parameters = [Input(0), Input(grad), Workspace(&products), sizes[0], sizes[1], I32(0)];
            call.launch("column_products", grid, &parameters)?;
        }
        let (gamma, back) = (Input(grad.map_or(1, |_| 2)), I32(i32::from(grad.is_some())));
        let parameters = [Workspace(&norms), Workspace(&products), gamma, Workspace(&means), sizes[1], back];
        call.launch("response_means", cuda::rows(batch, width), &parameters)?;
        Ok(Self { norms, products, means, sizes })
    }
}

/// (x, dy, γ) to dx.
struct GrnBackward;

impl Fused for GrnBackward {
    const NAME: &'static str = "grn-backward";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, dy, gamma]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (width, sample) = (xs.dims[2], xs.dims[1] * xs.dims[2]);
        slice::by_rows(out, sample, |first, dx| {
            let mut products = vec![0f32; width]; // Σ_n dy·x
            for (i, dx) in dx.chunks_exact_mut(sample).enumerate() {
                let at = (first + i) * sample;
                let (x, dy) = (&xs.data[at..at + sample], &dy.data[at..at + sample]);
                products.fill(0.0);
                add_products(&mut products, x, dy);
                respond_backward(dx, x, dy, &gamma.data, &products);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, responses) = (call.count(), Responses::of(call, Some(1))?);
        let Responses { norms, products, means, sizes: [positions, width] } = &responses;
        let parameters = [
            Input(0),
            Input(1),
            Input(2),
            Workspace(norms),
            Workspace(products),
            Workspace(means),
            Output,
            *positions,
            *width,
            U64(count as u64),
        ];
        call.launch("grn_backward", cuda::elements(count), &parameters)
    }
}

/// (x, dy) to the gradient of γ.
struct GrnGamma;

impl Fused for GrnGamma {
    const NAME: &'static str = "grn-gamma";

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs[2].into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (width, sample) = (xs.dims[2], xs.dims[1] * xs.dims[2]);
        let mut products = vec![0f32; width];
        for (x, dy) in xs.data.chunks_exact(sample).zip(dy.data.chunks_exact(sample)) {
            products.fill(0.0);
            add_products(&mut products, x, dy);
            let (norms, mean) = response(x, width);
            for ((out, product), norm) in out.iter_mut().zip(&products).zip(&norms) {
                *out += product * norm / mean;
            }
        }
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, dy) = (arguments[0], arguments[1]);
        let norms = xs.sqr()?.sum_keepdim(1)?.sqrt()?; // (B, 1, C)
        let mean = (norms.mean_keepdim(2)? + EPSILON)?;
        (xs * dy)?.sum_keepdim(1)?.mul(&norms.broadcast_div(&mean)?)?.sum((0, 1))
    }
}

/// GELU (erf), then [`grn`]: the two as one, so that only the input is kept for the way back (on CUDA, which runs the
/// composition, GELU's result too).
///
/// # Shapes
/// As [`grn`].
///
/// # Errors
/// Where the shapes do not fit.
pub fn gelu_grn(xs: &Tensor, gamma: &Tensor, beta: &Tensor) -> TensorResult {
    op::apply(GeluGrn, &[xs, gamma, beta])
}

struct GeluGrn;

#[multiversion(targets = "simd")]
pub(super) fn gelu_respond(y: &mut [f32], x: &[f32], gamma: &[f32], beta: &[f32]) {
    let width = gamma.len();
    let mut gain = vec![0f32; width];
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        for ((y, x), norm) in y.iter_mut().zip(x).zip(&mut gain) {
            *y = x * normal_cdf(*x);
            *norm = y.mul_add(*y, *norm);
        }
    }
    let mean = mean_norm(&mut gain);
    gain.iter_mut().zip(gamma).for_each(|(n, g)| *n = (*n / mean).mul_add(*g, 1.0));
    for y in y.chunks_exact_mut(width) {
        for ((y, gain), beta) in y.iter_mut().zip(&gain).zip(beta) {
            *y = y.mul_add(*gain, *beta);
        }
    }
}

/// The gradient of one sample; `cdf` is a workspace of as many numbers.
#[multiversion(targets = "simd")]
pub(super) fn gelu_respond_backward(dx: &mut [f32], x: &[f32], dy: &[f32], gamma: &[f32], cdf: &mut [f32]) {
    let width = gamma.len();
    let (mut norms, mut products) = (vec![0f32; width], vec![0f32; width]);
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for (cdf, (x, dy)) in cdf.chunks_exact_mut(width).zip(rows) {
        let sums = norms.iter_mut().zip(&mut products);
        for (((cdf, x), dy), (norm, product)) in cdf.iter_mut().zip(x).zip(dy).zip(sums) {
            *cdf = normal_cdf(*x);
            let a = x * *cdf;
            *norm = a.mul_add(a, *norm);
            *product = a.mul_add(*dy, *product);
        }
    }
    let mean = mean_norm(&mut norms);
    let Pull { gain, pull } = Pull::of(&norms, mean, gamma, &products);
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(cdf.chunks_exact(width));
    for (dx, ((x, dy), cdf)) in dx.chunks_exact_mut(width).zip(rows) {
        let factors = gain.iter().zip(&pull);
        for ((((dx, x), dy), cdf), (gain, pull)) in dx.iter_mut().zip(x).zip(dy).zip(cdf).zip(factors) {
            let da = dy.mul_add(*gain, x * cdf * pull);
            let density = NORMAL_PEAK * slice::exp(-0.5 * x * x);
            *dx = da * x.mul_add(density, *cdf);
        }
    }
}

impl Fused for GeluGrn {
    const NAME: &'static str = "gelu-grn";
    const OVERWRITES: bool = true;

    fn shape(&self, dims: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Grn.shape(dims)
    }

    fn cpu(&self, [xs, gamma, beta]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let sample = xs.dims[1] * xs.dims[2];
        slice::by_rows(out, sample, |first, out| {
            for (y, x) in out.chunks_exact_mut(sample).zip(xs.data[first * sample..].chunks_exact(sample)) {
                gelu_respond(y, x, &gamma.data, &beta.data);
            }
        });
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let activated = op::apply(Pointwise::Gelu, &arguments[..1])?;
        op::apply(Grn, &[&activated, arguments[1], arguments[2]])
    }

    fn gradients(
        &self,
        [xs, gamma, beta]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let activated = || op::backward(Pointwise::Gelu, &[xs]);
        Ok([
            wanted(xs, || op::backward(GeluGrnBackward, &[xs, grad, gamma]))?,
            wanted(gamma, || op::backward(GrnGamma, &[&activated()?, grad]))?,
            wanted(beta, || op::backward(ColumnSums, &[grad]))?,
        ])
    }
}

/// (x, dy, γ) to dx.
struct GeluGrnBackward;

impl Fused for GeluGrnBackward {
    const NAME: &'static str = "gelu-grn-backward";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, dy, gamma]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let sample = xs.dims[1] * xs.dims[2];
        slice::by_rows(out, sample, |first, dx| {
            let mut cdf = vec![0f32; sample];
            for (i, dx) in dx.chunks_exact_mut(sample).enumerate() {
                let at = (first + i) * sample;
                let (x, dy) = (&xs.data[at..at + sample], &dy.data[at..at + sample]);
                gelu_respond_backward(dx, x, dy, &gamma.data, &mut cdf);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn grn_equals_its_composition() {
        on_each_device(|device| {
            let (xs, g, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            let ours = grn(&xs, &g, &b).unwrap();
            let theirs = grn(&double(&xs), &double(&g), &double(&b)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &g, &b], 5e-6);
        });
    }

    #[test]
    fn gelu_and_grn_are_one_after_the_other() {
        on_each_device(|device| {
            let (xs, g, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            let ours = gelu_grn(&xs, &g, &b).unwrap();
            let theirs = gelu_grn(&double(&xs), &double(&g), &double(&b)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &g, &b], 5e-6);
        });
    }

    #[test]
    fn both_compute_in_half_precision() {
        on_each_device(|device| {
            let (xs, g, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            same_in_half(&[&xs, &g, &b], |xs| grn(&xs[0], &xs[1], &xs[2]));
            same_in_half(&[&xs, &g, &b], |xs| gelu_grn(&xs[0], &xs[1], &xs[2]));
        });
    }
}
