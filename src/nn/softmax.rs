//! The softmax of rows, whole or in two groups of columns, under the masks that text towers need.

use candle_core::D;
use multiversion::multiversion;

use super::slice::LANES;
use super::*;

/// Which keys a query may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    None,
    /// Those at or before the query's own position.
    Causal,
    /// Those at or before the query's own position and before the sample's number of real tokens.
    CausalPadded(Vec<usize>),
}

impl Mask {
    /// Keys visible to query `i` of sample `b`, out of `keys`.
    #[inline(always)]
    pub fn visible(&self, b: usize, i: usize, keys: usize) -> usize {
        match self {
            Self::None => keys,
            Self::Causal => (i + 1).min(keys),
            Self::CausalPadded(lengths) => (i + 1).min(lengths[b]).min(keys),
        }
    }
}

/// The softmax of one row, in place. What is left of the last register is computed with it, as a row of a few keys would
/// otherwise cost as much as one of a hundred.
#[inline(always)]
fn softmax_row(row: &mut [f32]) {
    if row.is_empty() {
        return;
    }
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let mut peaks = last;
    whole.iter().for_each(|xs| slice::larger(&mut peaks, xs));
    let peak = slice::largest(peaks);

    let mut totals = [0f32; LANES];
    let exponentials = |xs: &mut [f32; LANES]| xs.iter_mut().for_each(|x| *x = slice::exp(*x - peak));
    let mut add = |xs: &[f32; LANES]| totals.iter_mut().zip(xs).for_each(|(total, x)| *total += x);
    for xs in whole.iter_mut() {
        exponentials(xs);
        add(xs);
    }
    exponentials(&mut last);
    last[rest.len()..].fill(0.0);
    add(&last);

    let share = 1.0 / slice::total(totals);
    whole.as_flattened_mut().iter_mut().for_each(|x| *x *= share);
    last.iter_mut().for_each(|x| *x *= share);
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The attention weights of sample `sample` from its scaled scores (queries, keys), in place; `first` keys are under the
/// first softmax, the others under another.
#[multiversion(targets = "simd")]
pub fn softmax(scores: &mut [f32], (first, keys): (usize, usize), sample: usize, mask: &Mask) {
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let (seen, hidden) = row.split_at_mut(mask.visible(sample, i, keys));
        hidden.fill(0.0);
        let (one, other) = seen.split_at_mut(first.min(seen.len()));
        softmax_row(one);
        softmax_row(other);
    }
}

/// The softmax of rows (queries, keys) in place, of which row `i` sees its first `seen + i` keys.
#[multiversion(targets = "simd")]
pub fn softmax_causal(scores: &mut [f32], keys: usize, seen: usize) {
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let (seen, hidden) = row.split_at_mut((seen + i).min(keys));
        hidden.fill(0.0);
        softmax_row(seen);
    }
}

/// From the gradient of the weights to that of the scaled scores, in place; `first` keys are under the first softmax.
#[multiversion(targets = "simd")]
pub fn softmax_backward(ds: &mut [f32], p: &[f32], (first, keys): (usize, usize), scale: f32) {
    for (ds, p) in ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
        let (one, other) = ds.split_at_mut(first);
        for (ds, p) in [(one, &p[..first]), (other, &p[first..])] {
            let mean = slice::sum_of_pairs(ds, p, |ds, p| ds * p);
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean) * scale);
        }
    }
}

/// The softmax of each row's first columns, and of its others.
#[derive(Clone, Copy)]
pub struct Softmax {
    /// How many columns are under the first softmax.
    pub first: usize,
}

impl Fused for Softmax {
    const NAME: &'static str = "softmax";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(xs.into())
    }

    fn cpu(&self, [xs, ..]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let keys = xs.dims[xs.dims.len() - 1];
        out.copy_from_slice(&xs.data);
        slice::by_rows(out, keys, |_, out| softmax(out, (self.first, keys), 0, &Mask::None));
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, keys) = (call.count(), call.width(0));
        let parameters = [Input(0), Output, U32(self.first as u32), U32(keys as u32)];
        call.launch("softmax", cuda::rows(count / keys, keys), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let xs = arguments[0];
        let group = |from: usize, len: usize| {
            let xs = xs.narrow(D::Minus1, from, len)?;
            let weights = xs.broadcast_sub(&xs.max_keepdim(D::Minus1)?.detach())?.exp()?;
            weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
        };
        match xs.dim(D::Minus1)? - self.first {
            0 => group(0, self.first),
            others => Tensor::cat(&[group(0, self.first)?, group(self.first, others)?], D::Minus1),
        }
    }

    fn gradients(
        &self,
        [xs, ..]: [&Tensor; ARGUMENTS],
        result: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([wanted(xs, || op::backward(SoftmaxBackward(*self), &[result, grad]))?, None, None])
    }
}

/// (p, dp) to the gradient of the scores.
struct SoftmaxBackward(Softmax);

impl Fused for SoftmaxBackward {
    const NAME: &'static str = "softmax-backward";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [p, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(p.into())
    }

    fn cpu(&self, [p, dp, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let keys = p.dims[p.dims.len() - 1];
        out.copy_from_slice(&dp.data);
        slice::by_rows(out, keys, |first, ds| {
            softmax_backward(ds, &p.data[first * keys..], (self.0.first, keys), 1.0);
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (count, keys) = (call.count(), call.width(0));
        let parameters = [Input(0), Input(1), Output, U32(self.0.first as u32), U32(keys as u32)];
        call.launch("softmax_backward", cuda::rows(count / keys, keys), &parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn the_softmax_alone_equals_its_composition() {
        on_each_device(|device| {
            let xs = var(device, &[3, 5, 41], 0);
            for first in [41, 33] {
                let theirs = op::apply(Softmax { first }, &[&double(&xs)]);
                same(
                    &op::apply(Softmax { first }, &[&xs]).unwrap(),
                    &theirs.unwrap().to_dtype(candle_core::DType::F32).unwrap(),
                    &[&xs],
                    3e-6,
                );
            }
        });
    }
}
