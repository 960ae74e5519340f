//! Causal attention of many query heads to fewer heads of keys and values, with keys that were made before.
//!
//! Language models decode one position after the other: the keys of all earlier ones are kept, and each new query sees
//! them. Samples of one batch may have prompts of different lengths; they end at the same column, and begin at their own.

use candle_core::{D, DType};

use super::softmax::{Softmax, softmax_backward, softmax_causal};
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
    let mixed = op::apply(op, &[queries, keys, values])?;
    match mixed.rank() {
        3 => Ok(mixed),
        _ => mixed.transpose(1, 2)?.reshape(queries.shape()), // (B, heads, N, d) to (B, N, heads·d)
    }
}

/// Gives (B, heads, N, d) on the CPU, so that each thread owns whole heads.
#[derive(Clone)]
struct GroupedAttention(Keys);

/// Queries of one head that are computed at once: their weights, over all keys, stay near the cache.
const BLOCK: usize = 128;

/// The most weights that the composition holds at once, over all heads and samples.
const WEIGHTS: usize = 1 << 27;

/// One head of one sample: slices that start at its first element, and which columns it has.
#[derive(Clone, Copy)]
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// From query to query, and from key to key.
    rows: (usize, usize),
    depth: usize,
    /// The column of the first query.
    before: usize,
    /// The sample's first column.
    start: usize,
    queries: usize,
    /// Queries before the sample's start.
    padding: usize,
}

impl<'a> Head<'a> {
    /// Queries that are computed at once: the first one, how many, and how many keys the last of them sees.
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (self.padding..self.queries).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(self.queries - first);
            (first, rows, self.before + first + rows - self.start)
        })
    }

    /// The queries from `first` on.
    fn queries(&self, first: usize) -> slice::Matrix<'a> {
        slice::Matrix { data: &self.q[first * self.rows.0..], row: self.rows.0, column: 1 }
    }

    /// The sample's keys, or its values.
    fn sources(&self, of: &'a [f32]) -> slice::Matrix<'a> {
        slice::Matrix { data: &of[self.start * self.rows.1..], row: self.rows.1, column: 1 }
    }

    /// The attention weights of a block into `weights` (rows, keys).
    fn weights(&self, (first, rows, keys): (usize, usize, usize), weights: &mut [f32]) {
        let scale = 1.0 / (self.depth as f32).sqrt();
        let keys_by_column = self.sources(self.k).transposed();
        slice::gemm(
            (rows, keys, self.depth),
            weights,
            keys,
            false,
            scale,
            self.queries(first),
            keys_by_column,
        );
        softmax_causal(weights, keys, keys - rows + 1);
    }
}

impl GroupedAttention {
    /// Head `h` of sample `b`.
    fn head<'a>(&self, [q, k, v]: [&'a Argument; 3], (b, h): (usize, usize)) -> Head<'a> {
        let Keys { num_heads, num_key_value_heads, filled, .. } = self.0;
        let (queries, width) = (q.dims[1], q.dims[2]);
        let (depth, shared) = (width / num_heads, k.dims[2]);
        let at = h / (num_heads / num_key_value_heads) * depth;
        let (before, start) = (filled - queries, self.0.starts[b]);
        Head {
            q: &q.sample(b)[h * depth..],
            k: &k.sample(b)[at..],
            v: &v.sample(b)[at..],
            rows: (width, shared),
            depth,
            before,
            start,
            queries,
            padding: start.saturating_sub(before).min(queries),
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
                let head = self.head([&q, &k, &v], ((first + i) / heads, (first + i) % heads));
                let (depth, shared) = (head.depth, head.rows.1);
                for (i, out) in out.chunks_exact_mut(depth).take(head.padding).enumerate() {
                    out.copy_from_slice(&head.v[(head.before + i) * shared..][..depth]);
                }
                for block in head.blocks() {
                    let (first, rows, keys) = block;
                    room.resize(rows * keys, 0.0);
                    head.weights(block, &mut room);
                    let weights = slice::Matrix { data: &room, row: keys, column: 1 };
                    let out = &mut out[first * depth..];
                    slice::gemm((rows, depth, keys), out, depth, false, 1.0, weights, head.sources(head.v));
                }
            }
        });
    }

    fn gradients(
        &self,
        [q, k, v]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let Keys { num_heads, num_key_value_heads: shared, .. } = self.0;
        let ((batch, queries, width), columns) = (q.dims3()?, k.dim(1)?);
        let (depth, group) = (width / num_heads, num_heads / shared);
        let all = op::backward(Backward(self.clone()), &[q, &Tensor::cat(&[k, v], 0)?, grad])?;
        let of_queries = group * queries * depth;
        let of_keys = |at: usize| {
            let part = all.narrow(2, of_queries + at * columns * depth, columns * depth)?;
            part.reshape((batch, shared, columns, depth))?.transpose(1, 2)?.reshape(k.shape())
        };
        Ok([
            wanted(q, || {
                let part = all.narrow(2, 0, of_queries)?.reshape((batch, num_heads, queries, depth))?;
                part.transpose(1, 2)?.reshape(q.shape())
            })?,
            wanted(k, || of_keys(0))?,
            wanted(v, || of_keys(1))?,
        ])
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

/// (Q, [K; V] one after the other along the batch, the result's gradient) to the gradients of the heads that share keys, one
/// group after the other: its queries', (heads, N, d), its keys' and its values', (M, d). The weights are made again.
struct Backward(GroupedAttention);

impl Fused for Backward {
    const NAME: &'static str = "grouped-attention-backward";

    fn shape(&self, [q, both, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let Keys { num_heads, num_key_value_heads: shared, .. } = self.0.0;
        let per_group = num_heads / shared * q[1] * (q[2] / num_heads) + 2 * both[1] * (q[2] / num_heads);
        Ok((q[0], shared, per_group).into())
    }

    fn cpu(&self, [q, both, grad]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let Keys { num_heads, num_key_value_heads: shared, .. } = self.0.0;
        let ([_, queries, width], columns) = ([q.dims[0], q.dims[1], q.dims[2]], both.dims[1]);
        let (depth, group) = (width / num_heads, num_heads / shared);
        let (k, v) = both.data.split_at(both.data.len() / 2);
        let dims = [q.dims[0], columns, both.dims[2]];
        let [k, v] = [k, v].map(|data| Argument { data: data.into(), dims: &dims, column: None });
        let of_queries = group * queries * depth;
        let size = of_queries + 2 * columns * depth;
        slice::by_rows(out, size, |first, out| {
            let mut room = [Vec::new(), Vec::new()];
            for (i, out) in out.chunks_exact_mut(size).enumerate() {
                let (b, s) = ((first + i) / shared, (first + i) % shared);
                let (dq, dkv) = out.split_at_mut(of_queries);
                let (dk, dv) = dkv.split_at_mut(columns * depth);
                for (g, dq) in dq.chunks_exact_mut(queries * depth).enumerate() {
                    let h = s * group + g;
                    let dy = &grad.sample(b)[h * queries * depth..][..queries * depth];
                    one_head(
                        self.0.head([&q, &k, &v], (b, h)),
                        dy,
                        [&mut *dq, &mut *dk, &mut *dv],
                        &mut room,
                    );
                }
            }
        });
    }
}

/// Adds one head's part: `dy` and `dq` (N, d), `dk` and `dv` (M, d).
fn one_head(head: Head, dy: &[f32], [dq, dk, dv]: [&mut [f32]; 3], [weights, ds]: &mut [Vec<f32>; 2]) {
    let depth = head.depth;
    // What is padding saw its own value.
    let own = dv[head.before * depth..].iter_mut().zip(&dy[..head.padding * depth]);
    own.for_each(|(dv, dy)| *dv += dy);
    let at = head.start * depth;
    for block in head.blocks() {
        let (first, rows, keys) = block;
        weights.resize(rows * keys, 0.0);
        ds.resize(rows * keys, 0.0);
        head.weights(block, weights);
        let dy = slice::Matrix { data: &dy[first * depth..], row: depth, column: 1 };
        slice::gemm((rows, keys, depth), ds, keys, false, 1.0, dy, head.sources(head.v).transposed());
        softmax_backward(ds, weights, (keys, keys), 1.0 / (depth as f32).sqrt());
        let by_row = |data| slice::Matrix { data, row: keys, column: 1 };
        let out = &mut dq[first * depth..];
        slice::gemm((rows, depth, keys), out, depth, false, 1.0, by_row(ds), head.sources(head.k));
        let by_column = |data| by_row(data).transposed();
        slice::gemm((keys, depth, rows), &mut dk[at..], depth, true, 1.0, by_column(ds), head.queries(first));
        slice::gemm((keys, depth, rows), &mut dv[at..], depth, true, 1.0, by_column(weights), dy);
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

    fn drawn(device: &Device, shape: [usize; 3], index: u64) -> Tensor {
        var(device, &shape, index).detach()
    }

    #[test]
    fn equals_its_composition_with_padding_and_earlier_keys() {
        on_each_device(|device| {
            for (queries, filled, columns) in [(9, 9, 9), (300, 300, 300), (4, 11, 16), (1, 200, 201)] {
                let (q, k, v) = (
                    drawn(device, [2, queries, 24], 0),
                    drawn(device, [2, columns, 8], 1),
                    drawn(device, [2, columns, 8], 2),
                );
                for starts in [[0, 0], [0, 3], [filled - 1, 1]] {
                    let layout = layout(&starts, filled);
                    let ours = grouped_attention(&q, &k, &v, &layout).unwrap();
                    let theirs = grouped_attention(&double(&q), &double(&k), &double(&v), &layout).unwrap();
                    let distance = distance(&ours, &theirs.to_dtype(DType::F32).unwrap());
                    assert!(distance < 3e-6, "{queries} of {filled}, from {starts:?}: {distance}");
                }
            }
        });
    }

    #[test]
    fn a_sample_is_the_same_alone_and_behind_padding() {
        let (q, k, v) = (
            drawn(&Device::Cpu, [1, 7, 24], 0),
            drawn(&Device::Cpu, [1, 7, 8], 1),
            drawn(&Device::Cpu, [1, 7, 8], 2),
        );
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
        on_each_device(|device| {
            // One block of queries, two, and keys of earlier calls.
            for (queries, columns, filled) in [(5, 5, 5), (150, 150, 150), (3, 9, 7)] {
                let [q, k, v] = [([2, queries, 24], 0), ([2, columns, 8], 1), ([2, columns, 8], 2)]
                    .map(|(shape, index)| var(device, &shape, index));
                let layout = layout(&[0, filled - 2], filled);
                let ours = grouped_attention(&q, &k, &v, &layout).unwrap();
                let theirs = grouped_attention(&double(&q), &double(&k), &double(&v), &layout).unwrap();
                same(&ours, &theirs.to_dtype(DType::F32).unwrap(), &[&q, &k, &v], 5e-6);
            }
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (q, k) = (drawn(&Device::Cpu, [1, 7, 24], 0), drawn(&Device::Cpu, [1, 7, 8], 1));
        assert!(grouped_attention(&q, &k, &k, &layout(&[0], 8)).is_err());
        assert!(grouped_attention(&q, &k, &k, &layout(&[7], 7)).is_err());
        assert!(grouped_attention(&q, &k, &k, &layout(&[0, 0], 7)).is_err());
    }
}
