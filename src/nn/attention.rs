//! Multi-head attention: a softmax over all keys, with the mask that text towers need, or two softmaxes side by side for
//! the decoupled branch of a user.

use super::softmax::{Mask, Softmax, softmax, softmax_backward};
use super::*;

#[cfg(any(test, feature = "cuda"))]
mod batched;

/// The keys and values that one attention block gets from outside the picture.
#[derive(Debug, Clone)]
pub struct KeyValue {
    /// (B, M, 2C): each token's key, then its value.
    both: Tensor,
}

impl KeyValue {
    /// Wraps keys and values that lie side by side, as one linear map to both makes them.
    ///
    /// # Shapes
    /// (B, M, 2C)
    pub fn new(both: Tensor) -> Self {
        Self { both }
    }

    /// (B, M, 2C): each token's key, then its value.
    pub fn tensor(&self) -> &Tensor {
        &self.both
    }

    /// How many tokens there are for each sample.
    ///
    /// # Errors
    /// Where the tensor has not three axes.
    pub fn tokens(&self) -> TensorResult<usize> {
        self.both.dim(1)
    }

    /// Applies a change of the batch.
    ///
    /// # Errors
    /// As `change`.
    pub fn map(&self, change: impl Fn(&Tensor) -> TensorResult) -> TensorResult<Self> {
        Ok(Self { both: change(&self.both)? })
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
        let parts: Vec<&Tensor> = parts.iter().map(|part| &part.both).collect();
        Ok(Self { both: Tensor::cat(&parts, 0)? })
    }
}

/// `softmax(Q Kᵀ / √d) V` for each head, the keys being the positions' own.
///
/// # Shapes
/// `qkv` (B, N, 3C): each position's query, key and value, C = `num_heads`·d; result (B, N, C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn self_attention(qkv: &Tensor, num_heads: usize, mask: &Mask) -> TensorResult {
    let op = Attention { num_heads, mask: mask.clone(), first: None, frozen: 0 };
    op::apply(op, &[qkv])
}

/// Attention to the positions themselves and to a text under one softmax, and beside it to a user under another; what the
/// two give is added (the paper's Eq. 7): `softmax(Q [K; K_t]ᵀ) [V; V_t] + softmax(Q K_uᵀ) V_u`.
///
/// # Shapes
/// `qkv` (B, N, 3C), `text` and `user` of batch B and width C; result (B, N, C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn decoupled_attention(
    qkv: &Tensor,
    text: &KeyValue,
    user: Option<&KeyValue>,
    num_heads: usize,
) -> TensorResult {
    let (external, op) = decoupled(qkv.dim(1)?, text, user, num_heads)?;
    op::apply(op, &[qkv, &external])
}

/// Text's and user's keys and values side by side, and the operation that tells them apart.
pub(super) fn decoupled(
    positions: usize,
    text: &KeyValue,
    user: Option<&KeyValue>,
    num_heads: usize,
) -> TensorResult<(Tensor, Attention)> {
    let texts = text.tokens()?;
    let external = match user {
        // What trains may be kept in a higher precision than the model.
        Some(user) => Tensor::cat(&[&text.both, &user.both.to_dtype(text.both.dtype())?], 1)?,
        None => text.both.clone(),
    };
    let op = Attention {
        num_heads,
        mask: Mask::None,
        first: user.is_some().then_some(positions + texts),
        frozen: if text.both.track_op() { 0 } else { texts },
    };
    Ok((external, op))
}

#[derive(Clone)]
pub(super) struct Attention {
    num_heads: usize,
    mask: Mask,
    /// How many keys are under the first softmax, where there are two.
    first: Option<usize>,
    /// How many of the external tokens, from the first, need no gradient.
    frozen: usize,
}

/// Sizes of one call: queries, external tokens, channels, and the heads' depth.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    queries: usize,
    external: usize,
    channels: usize,
    depth: usize,
}

impl Sizes {
    /// All keys that a query sees.
    pub(super) fn keys(self) -> usize {
        self.queries + self.external
    }
}

/// One head of one sample: slices that start at its first element.
struct Head<'a> {
    sizes: Sizes,
    qkv: &'a [f32],
    external: &'a [f32],
}

impl<'a> Head<'a> {
    fn own(&self, part: usize) -> slice::Matrix<'a> {
        let channels = self.sizes.channels;
        slice::Matrix { data: &self.qkv[part * channels..], row: 3 * channels, column: 1 }
    }

    fn query(&self) -> slice::Matrix<'a> {
        self.own(0)
    }

    /// Keys (0) or values (1), those of the positions and, where there are some, the external ones; with each the number
    /// of rows and the first column of the weights that is theirs.
    fn sources(&self, part: usize) -> impl Iterator<Item = (slice::Matrix<'a>, usize, usize)> {
        let Sizes { queries, external, channels, .. } = self.sizes;
        let own = (self.own(1 + part), queries, 0);
        let data = self.external.get(part * channels..).unwrap_or_default();
        let other = (slice::Matrix { data, row: 2 * channels, column: 1 }, external, queries);
        std::iter::once(own).chain((external > 0).then_some(other))
    }

    /// Products of `rows` (queries, depth) with the keys or values, into `out` (queries, keys).
    fn products(&self, rows: slice::Matrix, part: usize, scale: f32, out: &mut [f32]) {
        let Sizes { queries, depth, .. } = self.sizes;
        let keys = self.sizes.keys();
        for (source, count, column) in self.sources(part) {
            let out = &mut out[column..];
            slice::gemm((queries, count, depth), out, keys, false, scale, rows, source.transposed());
        }
    }

    /// `weights` (queries, keys) times the keys or values, into `out` whose rows are `out_row` apart.
    fn mix(&self, weights: &[f32], part: usize, out: &mut [f32], out_row: usize) {
        let Sizes { queries, depth, .. } = self.sizes;
        let keys = self.sizes.keys();
        for (source, count, column) in self.sources(part) {
            let lhs = slice::Matrix { data: &weights[column..], row: keys, column: 1 };
            slice::gemm((queries, depth, count), out, out_row, column > 0, 1.0, lhs, source);
        }
    }
}

impl Attention {
    /// Those of `queries` positions of `channels` beside `external` tokens.
    pub(super) fn sizes(&self, queries: usize, channels: usize, external: &[usize]) -> Sizes {
        let external = if external.len() == 3 { external[1] } else { 0 };
        Sizes { queries, external, channels, depth: channels / self.num_heads }
    }

    /// How many keys are under the first softmax, and how many there are.
    fn groups(&self, sizes: Sizes) -> (usize, usize) {
        (self.first.unwrap_or(sizes.keys()), sizes.keys())
    }

    /// Head `h` of a sample's queries, keys and values and of its external tokens.
    fn head<'a>(sizes: Sizes, h: usize, (qkv, external): (&'a [f32], &'a [f32])) -> Head<'a> {
        let at = h * sizes.depth;
        Head { sizes, qkv: &qkv[at..], external: external.get(at..).unwrap_or_default() }
    }

    /// All heads of sample `b` from its `sources` into `out` (queries, channels); `weights` is a workspace of (queries,
    /// keys).
    pub(super) fn mix(
        &self,
        sizes: Sizes,
        b: usize,
        sources: (&[f32], &[f32]),
        weights: &mut [f32],
        out: &mut [f32],
    ) {
        for h in 0..self.num_heads {
            let head = Self::head(sizes, h, sources);
            self.weights(b, &head, weights);
            head.mix(weights, 1, &mut out[h * sizes.depth..], sizes.channels);
        }
    }

    /// The attention weights of one head of sample `b` into `weights` (queries, keys).
    fn weights(&self, b: usize, head: &Head, weights: &mut [f32]) {
        let scale = 1.0 / (head.sizes.depth as f32).sqrt();
        head.products(head.query(), 0, scale, weights);
        softmax(weights, self.groups(head.sizes), b, &self.mask);
    }
}

impl Fused for Attention {
    const NAME: &'static str = "attention";
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [qkv, external, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match (qkv, external) {
            ([batch, queries, triple], _) if triple % (3 * self.num_heads.max(1)) == 0 => match external {
                [0] => Ok((*batch, *queries, triple / 3).into()),
                [b, _, double] if b == batch && 3 * double == 2 * triple => {
                    Ok((*batch, *queries, triple / 3).into())
                }
                _ => candle_core::bail!("attention: queries, keys, values {qkv:?}, external {external:?}"),
            },
            _ => candle_core::bail!("attention: queries, keys, values {qkv:?}, {} heads", self.num_heads),
        }
    }

    fn cpu(&self, [qkv, external, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (queries, channels) = (qkv.dims[1], qkv.dims[2] / 3);
        let sizes = self.sizes(queries, channels, external.dims);
        slice::by_rows(out, queries * channels, |first, out| {
            let mut weights = op::unwritten(queries * sizes.keys());
            for (i, out) in out.chunks_exact_mut(queries * channels).enumerate() {
                let b = first + i;
                self.mix(sizes, b, (qkv.sample(b), external.sample(b)), &mut weights, out);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        if call.count() == 0 {
            return Ok(());
        }
        let plan = batched::Plan::new(self, call.dims(0), call.dims(1));
        plan.forward(&mut batched::Gpu::new(call, &plan, false)?)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (qkv, external) = (arguments[0], op::present(arguments, 1));
        let (batch, queries, channels) = (qkv.dim(0)?, qkv.dim(1)?, qkv.dim(2)? / 3);
        let sizes = self.sizes(queries, channels, external.map_or(&[], |external| external.dims()));
        let (depth, keys) = (sizes.depth, sizes.keys());
        let heads = |xs: &Tensor| {
            xs.reshape((batch, xs.dim(1)?, self.num_heads, depth))?.transpose(1, 2)?.contiguous()
        };
        let part = |xs: &Tensor, i: usize| xs.narrow(2, i * channels, channels)?.contiguous();
        let all = |i: usize| match external {
            Some(external) => heads(&Tensor::cat(&[part(qkv, 1 + i)?, part(external, i)?], 1)?),
            None => heads(&part(qkv, 1 + i)?),
        };
        let q = (heads(&part(qkv, 0)?)? / (depth as f64).sqrt())?;
        let mut scores = q.matmul(&all(0)?.t()?)?;
        if self.mask != Mask::None {
            let bias: Vec<f32> = (0..batch * queries * keys)
                .map(|e| {
                    let (b, i, j) = (e / (queries * keys), e / keys % queries, e % keys);
                    if j < self.mask.visible(b, i, keys) { 0.0 } else { f32::NEG_INFINITY }
                })
                .collect();
            let bias = Tensor::from_vec(bias, (batch, 1, queries, keys), qkv.device())?;
            scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
        }
        let weights = op::apply(Softmax { first: self.groups(sizes).0 }, &[&scores])?;
        let mixed = weights.matmul(&all(1)?)?; // (B, heads, N, d)
        mixed.transpose(1, 2)?.reshape((batch, queries, channels))
    }

    fn gradients(
        &self,
        [qkv, external, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let (of_own, of_external) = (qkv.track_op(), external.track_op());
        if !of_own && !of_external {
            return Ok([None, None, None]);
        }
        let op = AttentionBackward { op: self.clone(), of_own, of_external };
        let both = op::backward(op, &[qkv, external, grad])?; // all of qkv's, then all of the external ones
        let own = if of_own { qkv.elem_count() } else { 0 };
        Ok([
            wanted(qkv, || both.narrow(0, 0, own)?.reshape(qkv.shape()))?,
            wanted(external, || both.narrow(0, own, external.elem_count())?.reshape(external.shape()))?,
            None,
        ])
    }
}

/// (qkv, external, dy) to the gradients of the first two, one after the other, those that are asked for. The weights are
/// made again.
pub(super) struct AttentionBackward {
    pub(super) op: Attention,
    /// Whether the positions' own queries, keys and values want a gradient: before the first user branch nothing trains.
    pub(super) of_own: bool,
    pub(super) of_external: bool,
}

impl AttentionBackward {
    /// All heads of sample `b` from its `sources` and the gradient of its result; `workspace` is twice (queries, keys).
    pub(super) fn sample(
        &self,
        sizes: Sizes,
        b: usize,
        sources: (&[f32], &[f32]),
        dy: &[f32],
        [d_qkv, d_external]: [&mut [f32]; 2],
        [p, ds]: &mut [Vec<f32>; 2],
    ) {
        for h in 0..self.op.num_heads {
            let at = h * sizes.depth;
            let out = [&mut *d_qkv, &mut *d_external].map(|out| out.get_mut(at..).unwrap_or_default());
            self.head(b, &Attention::head(sizes, h, sources), &dy[at..], out, [p, ds]);
        }
    }

    /// One head: `dy` starts at its first element, `d_qkv` and `d_external` too; `p` and `ds` are workspaces of (queries, keys).
    fn head(&self, b: usize, head: &Head, dy: &[f32], out: [&mut [f32]; 2], [p, ds]: [&mut [f32]; 2]) {
        let Sizes { queries, external, channels, depth } = head.sizes;
        let keys = head.sizes.keys();
        let [d_qkv, d_external] = out;
        let dy = slice::Matrix { data: dy, row: channels, column: 1 };
        self.op.weights(b, head, p);
        head.products(dy, 1, 1.0, ds);
        softmax_backward(ds, p, self.op.groups(head.sizes), 1.0 / (depth as f32).sqrt());
        if self.of_own {
            head.mix(ds, 0, d_qkv, 3 * channels);
        }
        // Keys get dsᵀ Q, values pᵀ dy: the positions' own, and of the external tokens those that train.
        for (part, (weights, rhs)) in [(&*ds, head.query()), (&*p, dy)].into_iter().enumerate() {
            let columns = |from: usize| slice::Matrix { data: &weights[from..], row: 1, column: keys };
            if self.of_own {
                let own = &mut d_qkv[(1 + part) * channels..];
                slice::gemm((queries, depth, queries), own, 3 * channels, false, 1.0, columns(0), rhs);
            }
            if self.of_external && self.op.frozen < external {
                let frozen = self.op.frozen;
                let other = &mut d_external[frozen * 2 * channels + part * channels..];
                let lhs = columns(queries + frozen);
                slice::gemm((external - frozen, depth, queries), other, 2 * channels, false, 1.0, lhs, rhs);
            }
        }
    }
}

impl Fused for AttentionBackward {
    const NAME: &'static str = "attention-backward";
    const KERNEL: bool = true;

    fn shape(&self, [qkv, external, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let count = |of: bool, dims: &[usize]| if of { dims.iter().product::<usize>() } else { 0 };
        Ok((count(self.of_own, qkv) + count(self.of_external, external)).into())
    }

    fn cpu(&self, [qkv, external, grad]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (queries, channels) = (qkv.dims[1], qkv.dims[2] / 3);
        let sizes = self.op.sizes(queries, channels, external.dims);
        let width = |of: bool, width: usize| if of { width } else { 0 };
        let widths = (
            width(self.of_own, queries * 3 * channels),
            width(self.of_external, sizes.external * 2 * channels),
        );
        let batch = qkv.dims[0];
        let (d_qkv, d_external) = out.split_at_mut(batch * widths.0);
        slice::by_rows_of_two(batch, (d_qkv, d_external), widths, |samples, d_qkv, d_external| {
            let mut workspace = [queries * sizes.keys(); 2].map(op::unwritten);
            for (i, b) in samples.enumerate() {
                let out =
                    [&mut d_qkv[i * widths.0..][..widths.0], &mut d_external[i * widths.1..][..widths.1]];
                let sources = (qkv.sample(b), external.sample(b));
                self.sample(sizes, b, sources, grad.sample(b), out, &mut workspace);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        if !call.has(2) {
            return Ok(());
        }
        if self.of_external && self.op.frozen > 0 {
            let external: usize = call.dims(1).iter().product();
            call.zero(call.count() - external)?;
        }
        let plan = batched::Plan::new(&self.op, call.dims(0), call.dims(1));
        plan.backward((self.of_own, self.of_external), &mut batched::Gpu::new(call, &plan, true)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    fn in_single(ys: TensorResult) -> Tensor {
        ys.unwrap().to_dtype(candle_core::DType::F32).unwrap()
    }

    #[test]
    fn equals_its_composition_under_every_mask() {
        on_each_device(|device| {
            let qkv = var(device, &[2, 9, 72], 0);
            for mask in [Mask::None, Mask::Causal, Mask::CausalPadded(vec![3, 9])] {
                let ours = self_attention(&qkv, 3, &mask).unwrap();
                same(&ours, &in_single(self_attention(&double(&qkv), 3, &mask)), &[&qkv], 3e-6);
            }
        });
    }

    #[test]
    fn the_decoupled_branch_equals_its_composition() {
        on_each_device(|device| {
            let (qkv, text, user) =
                (var(device, &[2, 9, 72], 0), var(device, &[2, 13, 48], 1), var(device, &[2, 4, 48], 2));
            let key_value = |xs: &Tensor| KeyValue::new(xs.clone());
            for with_user in [false, true] {
                let call = |change: fn(&Tensor) -> Tensor| {
                    let (text, user) = (key_value(&change(&text)), key_value(&change(&user)));
                    decoupled_attention(&change(&qkv), &text, with_user.then_some(&user), 3)
                };
                let (ours, theirs) = (call(|xs| xs.clone()).unwrap(), in_single(call(double)));
                let all: [&Tensor; 3] = [&qkv, &text, &user];
                same(&ours, &theirs, &all[..if with_user { 3 } else { 2 }], 3e-6);
                if with_user {
                    // A frozen text changes nothing but its own gradient.
                    let frozen = key_value(&text.detach());
                    let ours = decoupled_attention(&qkv, &frozen, Some(&key_value(&user)), 3).unwrap();
                    same(&ours, &theirs, &[&qkv, &user], 3e-6);
                    // Nor do frozen positions.
                    let ours = decoupled_attention(&qkv.detach(), &frozen, Some(&key_value(&user)), 3);
                    same(&ours.unwrap(), &theirs, &[&user], 3e-6);
                }
            }
        });
    }

    #[test]
    fn two_softmaxes_are_two_attentions_added() {
        on_each_device(|device| {
            let (qkv, text, user) =
                (var(device, &[2, 9, 72], 0), var(device, &[2, 13, 48], 1), var(device, &[2, 4, 48], 2));
            let both = {
                let (text, user) =
                    (KeyValue::new(text.as_tensor().clone()), KeyValue::new(user.as_tensor().clone()));
                decoupled_attention(&qkv, &text, Some(&user), 3).unwrap()
            };
            let text = decoupled_attention(&qkv, &KeyValue::new(text.as_tensor().clone()), None, 3).unwrap();
            // The user's part alone, head by head.
            let heads = |xs: &Tensor, from: usize| {
                let part = xs.narrow(2, from, 24).unwrap();
                part.reshape((2, part.dim(1).unwrap(), 3, 8))
                    .unwrap()
                    .transpose(1, 2)
                    .unwrap()
                    .contiguous()
                    .unwrap()
            };
            let scores =
                (heads(&qkv, 0).matmul(&heads(&user, 0).t().unwrap()).unwrap() / 8f64.sqrt()).unwrap();
            let weights = scores.exp().unwrap();
            let weights = weights.broadcast_div(&weights.sum_keepdim(3).unwrap()).unwrap();
            let part = weights
                .matmul(&heads(&user, 24))
                .unwrap()
                .transpose(1, 2)
                .unwrap()
                .reshape((2, 9, 24))
                .unwrap();
            assert!(distance(&both, &(text + part).unwrap()) < 3e-6);
        });
    }

    #[test]
    fn a_sample_is_the_same_alone_and_in_a_batch() {
        let (qkv, text) = (var(&Device::Cpu, &[5, 64, 384], 0), var(&Device::Cpu, &[5, 28, 256], 1));
        let of = |qkv: &Tensor, text: &Tensor| {
            decoupled_attention(qkv, &KeyValue::new(text.clone()), None, 4).unwrap()
        };
        let all = of(&qkv, &text);
        let one = |x: &Tensor| x.narrow(0, 3, 1).unwrap();
        assert_eq!(values(&of(&one(&qkv), &one(&text))), values(&one(&all)));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let qkv = var(&Device::Cpu, &[2, 9, 72], 0);
        assert!(self_attention(&qkv, 5, &Mask::None).is_err());
        let text = KeyValue::new(var(&Device::Cpu, &[2, 13, 40], 1).as_tensor().clone());
        let error = decoupled_attention(&qkv, &text, None, 3).unwrap_err().to_string();
        assert!(error.contains("[2, 13, 40]"), "{error}");
    }

    #[test]
    fn both_compute_in_half_precision() {
        on_each_device(|device| {
            let (qkv, text, user) =
                (var(device, &[2, 9, 72], 0), var(device, &[2, 13, 48], 1), var(device, &[2, 4, 48], 2));
            same_in_half(&[&qkv], |xs| self_attention(&xs[0], 3, &Mask::Causal));
            same_in_half(&[&qkv, &text, &user], |xs| {
                let (text, user) = (KeyValue::new(xs[1].clone()), KeyValue::new(xs[2].clone()));
                decoupled_attention(&xs[0], &text, Some(&user), 3)
            });
        });
    }
}
