//! Causal attention of many query heads to fewer heads of keys and values, with keys that were made before.
//!
//! Language models decode one position after the other: the keys of all earlier ones are kept, and each new query sees
//! them. Samples of one batch may have prompts of different lengths; they end at the same column, and begin at their own.

use candle_core::{D, DType};

use super::softmax::{Softmax, softmax_causal};
use super::*;

/// Which of the keys belong to which sample, and how the heads share them.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Heads of queries.
    pub num_heads: usize,
    /// Heads of keys and values; each serves `num_heads / num_key_value_heads` heads of queries.
    pub num_key_value_heads: usize,
    /// The first column that belongs to each sample; before it there is padding, which nothing else sees.
    pub starts: Vec<usize>,
    /// How many of the given columns are filled; the queries are the last of them.
    pub filled: usize,
}

/// `softmax(Q Kᵀ / √d) V` for each head of queries. A query sees the columns from its sample's start to its own; one that
/// is padding sees itself.
///
/// # Shapes
/// `queries` (B, N, heads·d), `keys` and `values` (B, M, kv heads·d) with `filled` ≤ M; result (B, N, heads·d).
///
/// # Errors
/// Where the shapes do not fit.
pub fn grouped_attention(queries: &Tensor, keys: &Tensor, values: &Tensor, layout: &Keys) -> TensorResult {
    let op = GroupedAttention(layout.clone());
    op.shape([queries.dims(), keys.dims(), values.dims()])?;
    // What trains goes through operations that have gradients.
    if [queries, keys, values].iter().any(|xs| xs.track_op()) {
        return op.compose(&[queries, keys, values]);
    }
    let mixed = op::apply(op, &[queries, keys, values])?;
    match mixed.rank() {
        3 => Ok(mixed),
        _ => mixed.transpose(1, 2)?.reshape(queries.shape()), // (B, heads, N, d) to (B, N, heads·d)
    }
}

/// Gives (B, heads, N, d) on the CPU, so that each thread owns whole heads.
struct GroupedAttention(Keys);

/// Queries of one head that are computed at once: their weights, over all keys, stay near the cache.
const BLOCK: usize = 128;

/// The most weights that the composition holds at once, over all heads and samples.
const WEIGHTS: usize = 1 << 27;

impl GroupedAttention {
    /// Head `h` of sample `b` into `out` (N, d).
    fn head(&self, [q, k, v]: [&Argument; 3], (b, h): (usize, usize), out: &mut [f32], room: &mut Vec<f32>) {
        let Keys { num_heads, num_key_value_heads, filled, .. } = self.0;
        let (queries, width) = (q.dims[1], q.dims[2]);
        let (depth, shared) = (width / num_heads, k.dims[2]);
        let at = h / (num_heads / num_key_value_heads) * depth;
        let (k, v) = (&k.sample(b)[at..], &v.sample(b)[at..]);
        let q = &q.sample(b)[h * depth..];
        // Columns of this call's queries, and of those the first that is no padding.
        let (before, start) = (filled - queries, self.0.starts[b]);
        let padding = start.saturating_sub(before).min(queries);
        for (i, out) in out.chunks_exact_mut(depth).take(padding).enumerate() {
            out.copy_from_slice(&v[(before + i) * shared..][..depth]);
        }
        let scale = 1.0 / (depth as f32).sqrt();
        let mut first = padding;
        while first < queries {
            let rows = BLOCK.min(queries - first);
            let keys = before + first + rows - start;
            room.resize(rows * keys, 0.0);
            let weights = &mut room[..rows * keys];
            let lhs = slice::Matrix { data: &q[first * width..], row: width, column: 1 };
            let rhs = slice::Matrix { data: &k[start * shared..], row: 1, column: shared };
            slice::gemm((rows, keys, depth), weights, keys, false, scale, lhs, rhs);
            softmax_causal(weights, keys, keys - rows + 1);
            let lhs = slice::Matrix { data: weights, row: keys, column: 1 };
            let rhs = slice::Matrix { data: &v[start * shared..], row: shared, column: 1 };
            slice::gemm((rows, depth, keys), &mut out[first * depth..], depth, false, 1.0, lhs, rhs);
            first += rows;
        }
    }
}

impl Fused for GroupedAttention {
    const NAME: &'static str = "grouped-attention";
    const OVERWRITES: bool = true;

    fn shape(&self, [q, k, v]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let Keys { num_heads, num_key_value_heads: shared, starts, filled } = &self.0;
        match (q, k) {
            ([batch, queries, width], [b, columns, narrow])
                if k == v
                    && batch == b
                    && starts.len() == *batch
                    && *shared > 0
                    && num_heads % shared == 0
                    && width % num_heads == 0
                    && *narrow == width / num_heads * shared
                    && queries <= filled
                    && filled <= columns
                    && starts.iter().all(|start| start < filled) =>
            {
                Ok((*batch, *num_heads, *queries, width / num_heads).into())
            }
            _ => {
                candle_core::bail!("grouped attention: queries {q:?}, keys {k:?}, values {v:?}, {:?}", self.0)
            }
        }
    }

    fn cpu(&self, [q, k, v]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let heads = self.0.num_heads;
        let size = q.dims[1] * q.dims[2] / heads;
        slice::by_rows(out, size, |first, out| {
            let mut room = Vec::new();
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                let (b, h) = ((first + i) / heads, (first + i) % heads);
                self.head([&q, &k, &v], (b, h), out, &mut room);
            }
        });
    }

    /// Gives (B, N, heads·d), block of queries by block.
    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let Keys { num_heads, num_key_value_heads: shared, starts, filled } = &self.0;
        let (q, filled) = (arguments[0], *filled);
        let (batch, queries, width) = q.dims3()?;
        let (depth, group) = (width / num_heads, num_heads / shared);
        let heads = |xs: &Tensor| {
            xs.narrow(1, 0, filled)?.reshape((batch, filled, *shared, depth))?.transpose(1, 2)?.contiguous()
        };
        let (k, v) = (heads(arguments[1])?.t()?, heads(arguments[2])?); // (B, kv, d, M), (B, kv, M, d)
        let columns = Tensor::arange(0u32, filled as u32, q.device())?.reshape((1, 1, filled))?;
        let block = (WEIGHTS / (batch * num_heads * filled)).clamp(1, queries);
        let mut mixed = Vec::with_capacity(queries.div_ceil(block));
        for first in (0..queries).step_by(block) {
            let rows = block.min(queries - first);
            let q = (q.narrow(1, first, rows)? / (depth as f64).sqrt())?
                .reshape((batch, rows, *shared, group, depth))?
                .permute((0, 2, 3, 1, 4))?
                .reshape((batch, *shared, group * rows, depth))?; // (B, kv, g·n, d)
            let scores = q.matmul(&k)?.reshape((batch, *num_heads, rows, filled))?;
            let own = filled - queries + first;
            let of_rows = |of: &dyn Fn(usize, usize) -> usize| {
                let all = (0..batch * rows).map(|at| of(at / rows, own + at % rows) as u32).collect();
                Tensor::from_vec::<_, u32>(all, (batch, rows, 1), q.device())
            };
            let hidden = columns
                .broadcast_gt(&of_rows(&|_, column| column)?)?
                .maximum(&columns.broadcast_lt(&of_rows(&|b, column| starts[b].min(column))?)?)?; // (B, n, M)
            // Far below every score, yet a finite number: minus infinity times zero would be none.
            let far = (hidden.to_dtype(DType::F32)? * -1e30)?.unsqueeze(1)?.to_dtype(scores.dtype())?;
            let weights = op::apply(Softmax { first: filled }, &[&scores.broadcast_add(&far)?])?;
            let weights = weights.reshape((batch, *shared, group * rows, filled))?;
            let block = weights
                .matmul(&v)?
                .reshape((batch, *shared, group, rows, depth))?
                .permute((0, 3, 1, 2, 4))?
                .reshape((batch, rows, width))?; // (B, n, heads·d)
            mixed.push(block);
        }
        match &mixed[..] {
            [one] => Ok(one.clone()),
            all => Tensor::cat(all, D::Minus2),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    fn layout(starts: &[usize], filled: usize) -> Keys {
        Keys { num_heads: 6, num_key_value_heads: 2, starts: starts.to_vec(), filled }
    }

    fn drawn(shape: [usize; 3], index: u64) -> Tensor {
        var(&Device::Cpu, &shape, index).detach()
    }

    #[test]
    fn equals_its_composition_with_padding_and_earlier_keys() {
        for (queries, filled, columns) in [(9, 9, 9), (300, 300, 300), (4, 11, 16), (1, 200, 201)] {
            let (q, k, v) =
                (drawn([2, queries, 24], 0), drawn([2, columns, 8], 1), drawn([2, columns, 8], 2));
            for starts in [[0, 0], [0, 3], [filled - 1, 1]] {
                let layout = layout(&starts, filled);
                let ours = grouped_attention(&q, &k, &v, &layout).unwrap();
                let theirs = grouped_attention(&double(&q), &double(&k), &double(&v), &layout).unwrap();
                let distance = distance(&ours, &theirs.to_dtype(DType::F32).unwrap());
                assert!(distance < 3e-6, "{queries} of {filled}, from {starts:?}: {distance}");
            }
        }
    }

    #[test]
    fn a_sample_is_the_same_alone_and_behind_padding() {
        let (q, k, v) = (drawn([1, 7, 24], 0), drawn([1, 7, 8], 1), drawn([1, 7, 8], 2));
        let alone = grouped_attention(&q, &k, &v, &layout(&[0], 7)).unwrap();
        let padded = |xs: &Tensor| {
            let zeros = Tensor::zeros((1, 5, xs.dim(2).unwrap()), DType::F32, &Device::Cpu).unwrap();
            let padded = Tensor::cat(&[&zeros, xs], 1).unwrap();
            Tensor::cat(&[&(&padded + 1.0).unwrap(), &padded], 0).unwrap()
        };
        let both = grouped_attention(&padded(&q), &padded(&k), &padded(&v), &layout(&[0, 5], 12)).unwrap();
        let second = both.narrow(0, 1, 1).unwrap().narrow(1, 5, 7).unwrap();
        assert_eq!(values(&second), values(&alone));
    }

    #[test]
    fn its_gradients_are_those_of_double_precision() {
        let [q, k, v] = [([2, 5, 24], 0), ([2, 5, 8], 1), ([2, 5, 8], 2)]
            .map(|(shape, index)| var(&Device::Cpu, &shape, index));
        let layout = layout(&[0, 2], 5);
        let ours = grouped_attention(&q, &k, &v, &layout).unwrap();
        let theirs = grouped_attention(&double(&q), &double(&k), &double(&v), &layout).unwrap();
        same(&ours, &theirs.to_dtype(DType::F32).unwrap(), &[&q, &k, &v], 5e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (q, k) = (drawn([1, 7, 24], 0), drawn([1, 7, 8], 1));
        assert!(grouped_attention(&q, &k, &k, &layout(&[0], 8)).is_err());
        assert!(grouped_attention(&q, &k, &k, &layout(&[7], 7)).is_err());
        assert!(grouped_attention(&q, &k, &k, &layout(&[0, 0], 7)).is_err());
    }
}
