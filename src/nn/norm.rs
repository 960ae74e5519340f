//! Layer normalisation over channels, and Stage C's global response normalisation.

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
    if !is_fused(xs) {
        let centred = xs.broadcast_sub(&xs.mean_keepdim(candle_core::D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
        let ys = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
        return match affine {
            Some((weight, bias)) => ys.broadcast_mul(weight)?.broadcast_add(bias),
            None => Ok(ys),
        };
    }
    let (weight, bias) = match affine {
        Some((weight, bias)) => (weight.contiguous()?, bias.contiguous()?),
        None => (absent(xs)?, absent(xs)?),
    };
    xs.contiguous()?.apply_op3(&weight, &bias, LayerNorm { eps: eps as f32 })
}

struct LayerNorm {
    eps: f32,
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

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let width = xs_layout.shape().dims().last().copied().unwrap_or(0);
        let x = slice::of(xs, xs_layout)?;
        let (w, b) = (slice::of(weight, weight_layout)?, slice::of(bias, bias_layout)?);
        if width == 0 || w.len() != b.len() || (!w.is_empty() && w.len() != width) {
            candle_core::bail!("layer-norm: rows of {width}, {} weights and {} biases", w.len(), b.len());
        }
        let mut out = vec![0f32; x.len()];
        slice::by_rows(&mut out, width, |first, out| {
            normalise(out, width, &x[first * width..], w, b, self.eps);
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = xs.dim(candle_core::D::Minus1)?;
        let device = xs.device();
        slice::with(&[xs, weight, grad], |slices| {
            let [x, w, dy] = slices else { unreachable!("three tensors give three slices") };
            let mut dx = vec![0f32; x.len()];
            slice::by_rows(&mut dx, width, |first, dx| {
                let from = first * width;
                normalise_backward(dx, width, &x[from..], w, &dy[from..], self.eps);
            });
            let (mut dw, mut db) = (vec![0f32; w.len()], vec![0f32; w.len()]);
            if weight.track_op() || bias.track_op() {
                affine_gradients(&mut dw, &mut db, x, dy, self.eps);
            }
            let dx = Tensor::from_vec(dx, xs.shape(), device)?;
            let of = |t: &Tensor, g| t.track_op().then(|| Tensor::from_vec(g, width, device)).transpose();
            Ok((Some(dx), of(weight, dw)?, of(bias, db)?))
        })?
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
    if !is_fused(xs) {
        let norms = xs.sqr()?.sum_keepdim(1)?.sqrt()?; // (B, 1, C)
        let mean = (norms.mean_keepdim(2)? + EPSILON)?;
        let scaled = xs.broadcast_mul(&norms.broadcast_div(&mean)?)?;
        return scaled.broadcast_mul(gamma)?.broadcast_add(beta)?.add(xs);
    }
    xs.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, Grn)
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

impl CustomOp3 for Grn {
    fn name(&self) -> &'static str {
        "grn"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (_, positions, width) = xs_layout.shape().dims3()?;
        let x = slice::of(xs, xs_layout)?;
        let (gamma, beta) = (slice::of(gamma, gamma_layout)?, slice::of(beta, beta_layout)?);
        if gamma.len() != width || beta.len() != width {
            candle_core::bail!("grn: {width} channels, {} gammas and {} betas", gamma.len(), beta.len());
        }
        let sample = positions * width;
        let mut out = vec![0f32; x.len()];
        slice::by_rows(&mut out, sample, |first, out| {
            for (y, x) in out.chunks_exact_mut(sample).zip(x[first * sample..].chunks_exact(sample)) {
                respond(y, x, gamma, beta);
            }
        });
        Ok((CpuStorage::F32(out), xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, positions, width) = xs.dims3()?;
        let device = xs.device();
        let sample = positions * width;
        slice::with(&[xs, gamma, grad], |slices| {
            let [x, gamma_, dy] = slices else { unreachable!("three tensors give three slices") };
            let mut dx = vec![0f32; x.len()];
            // Rows: per sample Σ_n dy·x, from which both dx and dγ follow.
            let mut products = vec![0f32; batch * width];
            let samples = x.chunks_exact(sample).zip(dy.chunks_exact(sample));
            for (p, (x, dy)) in products.chunks_exact_mut(width).zip(samples) {
                add_products(p, x, dy);
            }
            let products = &products;
            slice::by_rows(&mut dx, sample, |first, dx| {
                for (i, dx) in dx.chunks_exact_mut(sample).enumerate() {
                    let b = first + i;
                    let (x, dy) = (&x[b * sample..][..sample], &dy[b * sample..][..sample]);
                    respond_backward(dx, x, dy, gamma_, &products[b * width..][..width]);
                }
            });
            let (mut dgamma, mut dbeta) = (vec![0f32; width], vec![0f32; width]);
            if gamma.track_op() {
                for b in 0..batch {
                    let (norms, mean) = response(&x[b * sample..][..sample], width);
                    for c in 0..width {
                        dgamma[c] += products[b * width + c] * norms[c] / mean;
                    }
                }
            }
            if beta.track_op() {
                slice::add_rows(&mut dbeta, dy);
            }
            let of = |t: &Tensor, g| t.track_op().then(|| Tensor::from_vec(g, t.shape(), device)).transpose();
            Ok((Some(Tensor::from_vec(dx, xs.shape(), device)?), of(gamma, dgamma)?, of(beta, dbeta)?))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn layer_norm_equals_its_composition() {
        for width in [24, 128, 37] {
            let (xs, w, b) = (var(&[2, 5, width], 0), var(&[width], 1), var(&[width], 2));
            let composed = in_double(&xs, |x| layer_norm(x, None, 1e-6));
            same(&layer_norm(&xs, None, 1e-6).unwrap(), &composed, &[&xs], 3e-6);
            let ours = layer_norm(&xs, Some((&w, &b)), 1e-5).unwrap();
            let (xd, wd, bd) = (double(&xs), double(&w), double(&b));
            let theirs = layer_norm(&xd, Some((&wd, &bd)), 1e-5).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &w, &b], 3e-6);
        }
    }

    #[test]
    fn grn_equals_its_composition() {
        let (xs, g, b) = (var(&[2, 9, 40], 0), var(&[40], 1), var(&[40], 2));
        let ours = grn(&xs, &g, &b).unwrap();
        let theirs = grn(&double(&xs), &double(&g), &double(&b)).unwrap();
        same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &g, &b], 5e-6);
    }
}
