//! Layer normalisation over channels, and Stage C's global response normalisation.

use candle_core::D;
#[cfg(feature = "cuda")]
use candle_core::cuda::cudarc::driver::CudaSlice;
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
    let mean = slice::sum(x.len(), |i| x[i]) * scale;
    let variance = slice::sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[multiversion(targets = "simd")]
fn normalise(out: &mut [f32], width: usize, x: &[f32], w: &[f32], b: &[f32], eps: f32) {
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
fn normalise_backward(dx: &mut [f32], width: usize, x: &[f32], w: &[f32], dy: &[f32], eps: f32) {
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
        let mean_g = slice::sum(width, |i| g[i]) * share;
        let mean_gx = slice::sum(width, |i| g[i] * (x[i] - mean) * rstd) * share;
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

/// Each channel's norm over the positions of one sample, and their mean plus epsilon.
#[multiversion(targets = "simd")]
fn response(x: &[f32], width: usize) -> (Vec<f32>, f32) {
    let mut norms = vec![0f32; width];
    for x in x.chunks_exact(width) {
        norms.iter_mut().zip(x).for_each(|(n, x)| *n = x.mul_add(*x, *n));
    }
    norms.iter_mut().for_each(|n| *n = n.sqrt());
    let mean = slice::sum(width, |i| norms[i]) / width as f32 + EPSILON as f32;
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

#[multiversion(targets = "simd")]
fn respond_backward(dx: &mut [f32], x: &[f32], dy: &[f32], gamma: &[f32], products: &[f32]) {
    let width = gamma.len();
    let (norms, mean) = response(x, width);
    let shared = slice::sum(width, |c| products[c] * gamma[c] * norms[c]) / (mean * mean * width as f32);
    let mut gain = vec![0f32; width];
    let mut pull = vec![0f32; width];
    for c in 0..width {
        gain[c] = (norms[c] / mean).mul_add(gamma[c], 1.0);
        let da = products[c] * gamma[c] / mean - shared;
        pull[c] = if norms[c] > 0.0 { da / norms[c] } else { 0.0 };
    }
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
    for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
        for ((((dx, x), dy), gain), pull) in dx.iter_mut().zip(x).zip(dy).zip(&gain).zip(&pull) {
            *dx = dy.mul_add(*gain, x * pull);
        }
    }
}

impl Fused for Grn {
    const NAME: &'static str = "grn";
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
            Room(norms),
            Room(means),
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
            wanted(beta, || op::backward(super::linear::ColumnSums, &[grad]))?,
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
        let (norms, means) = (call.room(batch * width)?, call.room(2 * batch)?);
        let products = call.room(if grad.is_some() { batch * width } else { 0 })?;
        let grid = cuda::columns(batch, width);
        call.launch(
            "column_products",
            grid,
            &[Input(0), Input(0), Room(&norms), sizes[0], sizes[1], I32(1)],
        )?;
        if let Some(grad) = grad {
            let parameters = [Input(0), Input(grad), Room(&products), sizes[0], sizes[1], I32(0)];
            call.launch("column_products", grid, &parameters)?;
        }
        let (gamma, back) = (Input(grad.map_or(1, |_| 2)), I32(i32::from(grad.is_some())));
        let parameters = [Room(&norms), Room(&products), gamma, Room(&means), sizes[1], back];
        call.launch("response_means", cuda::rows(batch, width), &parameters)?;
        Ok(Self { norms, products, means, sizes })
    }
}

/// (x, dy, γ) to dx.
struct GrnBackward;

impl Fused for GrnBackward {
    const NAME: &'static str = "grn-backward";
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
            Room(norms),
            Room(products),
            Room(means),
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
    fn grn_equals_its_composition() {
        on_each_device(|device| {
            let (xs, g, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            let ours = grn(&xs, &g, &b).unwrap();
            let theirs = grn(&double(&xs), &double(&g), &double(&b)).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &g, &b], 5e-6);
        });
    }

    #[test]
    fn both_compute_in_half_precision() {
        on_each_device(|device| {
            let (xs, w, b) = (var(device, &[2, 9, 40], 0), var(device, &[40], 1), var(device, &[40], 2));
            same_in_half(&[&xs, &w, &b], |xs| layer_norm(&xs[0], Some((&xs[1], &xs[2])), 1e-5));
            same_in_half(&[&xs, &w, &b], |xs| grn(&xs[0], &xs[1], &xs[2]));
        });
    }
}
