//! Multi-head attention: one softmax over all keys, with the mask that text towers need.

use multiversion::multiversion;

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
    fn visible(&self, b: usize, i: usize, keys: usize) -> usize {
        match self {
            Self::None => keys,
            Self::Causal => (i + 1).min(keys),
            Self::CausalPadded(lengths) => (i + 1).min(lengths[b]).min(keys),
        }
    }
}

/// The keys and values that one attention block gets from outside the picture.
#[derive(Debug, Clone)]
pub struct KeyValue {
    /// Keys, (B, M, C).
    pub key: Tensor,
    /// Values, (B, M, C).
    pub value: Tensor,
}

impl KeyValue {
    /// Applies a change of the batch to both.
    ///
    /// # Errors
    /// As `change`.
    pub fn map(&self, change: impl Fn(&Tensor) -> TensorResult) -> TensorResult<Self> {
        Ok(Self { key: change(&self.key)?, value: change(&self.value)? })
    }

    /// The rows of the batch that each sample asks for: what a user gives is made once and shared by their samples.
    ///
    /// # Shapes
    /// `rows` (B'), unsigned integers below B; the result has batch B'.
    ///
    /// # Errors
    /// Where a row does not exist.
    pub fn select(&self, rows: &Tensor) -> TensorResult<Self> {
        self.map(|xs| xs.index_select(rows, 0))
    }

    /// Joins two batches.
    ///
    /// # Errors
    /// Where the token counts or widths differ.
    pub fn cat(parts: &[&Self]) -> TensorResult<Self> {
        let join =
            |of: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(|p| of(p)).collect::<Vec<_>>(), 0);
        Ok(Self { key: join(|p| &p.key)?, value: join(|p| &p.value)? })
    }
}

/// `softmax(Q Kᵀ / √d) V` for each head.
///
/// # Shapes
/// `q` (B, N, C), `k` and `v` (B, M, C) with C = `num_heads`·d; result (B, N, C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: usize, mask: &Mask) -> TensorResult {
    let (batch, queries, channels) = q.dims3()?;
    let keys = k.dim(1)?;
    if k.dims() != [batch, keys, channels] || v.dims() != k.dims() || channels % num_heads.max(1) != 0 {
        candle_core::bail!(
            "attention: queries {:?}, keys {:?}, values {:?}, {num_heads} heads",
            q.dims(),
            k.dims(),
            v.dims()
        );
    }
    if is_fused(q) {
        let op = Attention { num_heads, mask: mask.clone() };
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    let depth = channels / num_heads;
    let heads =
        |xs: &Tensor, n: usize| xs.reshape((batch, n, num_heads, depth))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads(q, queries)?, heads(k, keys)?, heads(v, keys)?); // (B, heads, N, d)
    let mut scores = (q.matmul(&k.t()?)? / (depth as f64).sqrt())?;
    if *mask != Mask::None {
        let bias: Vec<f32> = (0..batch * queries * keys)
            .map(|e| {
                let (b, i, j) = (e / (queries * keys), e / keys % queries, e % keys);
                if j < mask.visible(b, i, keys) { 0.0 } else { f32::NEG_INFINITY }
            })
            .collect();
        let bias = Tensor::from_vec(bias, (batch, 1, queries, keys), q.device())?.to_dtype(q.dtype())?;
        scores = scores.broadcast_add(&bias)?;
    }
    let peak = scores.max_keepdim(candle_core::D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&peak)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(candle_core::D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, channels))
}

struct Attention {
    num_heads: usize,
    mask: Mask,
}

/// One head of one sample: sizes and where its rows start.
struct Head<'a> {
    queries: usize,
    keys: usize,
    depth: usize,
    channels: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

#[multiversion(targets = "simd")]
fn softmax(scores: &mut [f32], keys: usize, sample: usize, mask: &Mask) {
    for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
        let (seen, hidden) = row.split_at_mut(mask.visible(sample, i, keys));
        let mut lanes = [f32::NEG_INFINITY; 16];
        for (i, x) in seen.iter().enumerate() {
            lanes[i % 16] = if *x > lanes[i % 16] { *x } else { lanes[i % 16] };
        }
        let peak = lanes.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
        seen.iter_mut().for_each(|x| *x = slice::exp(*x - peak));
        let total = 1.0 / slice::sum(seen.len(), |j| seen[j]);
        seen.iter_mut().for_each(|x| *x *= total);
        hidden.fill(0.0);
    }
}

/// From the gradient of the weights to that of the scaled scores, in place.
#[multiversion(targets = "simd")]
fn softmax_backward(ds: &mut [f32], p: &[f32], keys: usize, scale: f32) {
    for (ds, p) in ds.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
        let mean = slice::sum(keys, |j| ds[j] * p[j]);
        ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - mean) * scale);
    }
}

impl Attention {
    fn head<'a>(
        &self,
        b: usize,
        h: usize,
        sizes: (usize, usize, usize),
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
    ) -> Head<'a> {
        let (queries, keys, channels) = sizes;
        let depth = channels / self.num_heads;
        Head {
            queries,
            keys,
            depth,
            channels,
            q: &q[b * queries * channels + h * depth..],
            k: &k[b * keys * channels + h * depth..],
            v: &v[b * keys * channels + h * depth..],
        }
    }

    /// The attention weights of one head into `weights` (queries, keys).
    fn weights(&self, b: usize, head: &Head, weights: &mut [f32]) {
        let (n, m) = (head.queries, head.keys);
        let rows = |data| slice::Matrix { data, row: head.channels, column: 1 };
        let columns = |data| slice::Matrix { data, row: 1, column: head.channels };
        let scale = 1.0 / (head.depth as f32).sqrt();
        slice::gemm((n, m, head.depth), weights, m, false, scale, rows(head.q), columns(head.k));
        softmax(weights, m, b, &self.mask);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        let (_, queries, channels) = q_layout.shape().dims3()?;
        let keys = k_layout.shape().dims3()?.1;
        let (q, k, v) = (slice::of(q, q_layout)?, slice::of(k, k_layout)?, slice::of(v, v_layout)?);
        let mut out = vec![0f32; q.len()];
        slice::by_rows(&mut out, queries * channels, |first, out| {
            let mut weights = vec![0f32; queries * keys];
            for (i, out) in out.chunks_exact_mut(queries * channels).enumerate() {
                for h in 0..self.num_heads {
                    let head = self.head(first + i, h, (queries, keys, channels), q, k, v);
                    self.weights(first + i, &head, &mut weights);
                    let lhs = slice::Matrix { data: &weights, row: keys, column: 1 };
                    let rhs = slice::Matrix { data: head.v, row: channels, column: 1 };
                    let out = &mut out[h * head.depth..];
                    slice::gemm((queries, head.depth, keys), out, channels, false, 1.0, lhs, rhs);
                }
            }
        });
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (batch, queries, channels) = q.dims3()?;
        let keys = k.dim(1)?;
        let device = q.device();
        let (needs_q, needs_k, needs_v) = (q.track_op(), k.track_op(), v.track_op());
        slice::with(&[q, k, v, grad], |slices| {
            let [qs, ks, vs, dys] = slices else { unreachable!("four tensors give four slices") };
            // All three gradients of a sample lie side by side, so that samples can be handed to threads.
            let (nq, nk) = (queries * channels, keys * channels);
            let mut all = vec![0f32; batch * (nq + 2 * nk)];
            slice::by_rows(&mut all, nq + 2 * nk, |first, all| {
                let mut p = vec![0f32; queries * keys];
                let mut ds = vec![0f32; queries * keys];
                for (i, all) in all.chunks_exact_mut(nq + 2 * nk).enumerate() {
                    let b = first + i;
                    let (dq, rest) = all.split_at_mut(nq);
                    let (dk, dv) = rest.split_at_mut(nk);
                    for h in 0..self.num_heads {
                        let head = self.head(b, h, (queries, keys, channels), qs, ks, vs);
                        let depth = head.depth;
                        let at = h * depth;
                        let dy = &dys[b * nq + at..];
                        self.weights(b, &head, &mut p);
                        let rows = |data| slice::Matrix { data, row: channels, column: 1 };
                        let columns = |data| slice::Matrix { data, row: 1, column: channels };
                        if needs_v {
                            let lhs = slice::Matrix { data: &p, row: 1, column: keys };
                            slice::gemm(
                                (keys, depth, queries),
                                &mut dv[at..],
                                channels,
                                false,
                                1.0,
                                lhs,
                                rows(dy),
                            );
                        }
                        slice::gemm(
                            (queries, keys, depth),
                            &mut ds,
                            keys,
                            false,
                            1.0,
                            rows(dy),
                            columns(head.v),
                        );
                        let scale = 1.0 / (depth as f32).sqrt();
                        softmax_backward(&mut ds, &p, keys, scale);
                        if needs_q {
                            let lhs = slice::Matrix { data: &ds, row: keys, column: 1 };
                            slice::gemm(
                                (queries, depth, keys),
                                &mut dq[at..],
                                channels,
                                false,
                                1.0,
                                lhs,
                                rows(head.k),
                            );
                        }
                        if needs_k {
                            let lhs = slice::Matrix { data: &ds, row: 1, column: keys };
                            slice::gemm(
                                (keys, depth, queries),
                                &mut dk[at..],
                                channels,
                                false,
                                1.0,
                                lhs,
                                rows(head.q),
                            );
                        }
                    }
                }
            });
            let part = |wanted: bool, from: usize, len: usize, shape: &Shape| {
                wanted
                    .then(|| {
                        let mut out = Vec::with_capacity(batch * len);
                        all.chunks_exact(nq + 2 * nk)
                            .for_each(|s| out.extend_from_slice(&s[from..from + len]));
                        Tensor::from_vec(out, shape, device)
                    })
                    .transpose()
            };
            Ok((
                part(needs_q, 0, nq, q.shape())?,
                part(needs_k, nq, nk, k.shape())?,
                part(needs_v, nq + nk, nk, v.shape())?,
            ))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_its_composition_under_every_mask() {
        let (q, k, v) = (var(&[2, 9, 24], 0), var(&[2, 13, 24], 1), var(&[2, 13, 24], 2));
        for mask in [Mask::None, Mask::Causal, Mask::CausalPadded(vec![3, 13])] {
            let ours = attention(&q, &k, &v, 3, &mask).unwrap();
            let theirs = attention(&double(&q), &double(&k), &double(&v), 3, &mask).unwrap();
            same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&q, &k, &v], 3e-6);
        }
    }

    #[test]
    fn a_sample_is_the_same_alone_and_in_a_batch() {
        let (q, k, v) = (var(&[5, 64, 128], 0), var(&[5, 92, 128], 1), var(&[5, 92, 128], 2));
        let all = attention(&q, &k, &v, 4, &Mask::None).unwrap();
        let one = |x: &Tensor| x.narrow(0, 3, 1).unwrap();
        let alone = attention(&one(&q), &one(&k), &one(&v), 4, &Mask::None).unwrap();
        assert_eq!(values(&alone), values(&one(&all)));
    }
}
