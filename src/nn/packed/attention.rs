//! The attention block.

use super::super::attention::{Attention, AttentionBackward, KeyValue, decoupled};
use super::super::op::unwritten;
use super::super::*;
use super::*;

/// A frozen attention block: `x + out(attention(qkv(norm(x))))`, attention being [`decoupled_attention`].
#[derive(Debug, Clone)]
pub struct PackedAttention(Arc<AttentionMaps>);

#[derive(Debug)]
struct AttentionMaps {
    to_qkv: Affine,
    to_out: Affine,
    /// The part of `to_qkv` that tokens from outside the picture go through, (2C, C) and (2C).
    to_kv: (Tensor, Tensor),
    num_heads: usize,
}

impl PackedAttention {
    /// Packs a block from its maps, queries, keys and values one above the other, (3C, C) and (3C), and the output's, (C, C)
    /// and (C); `None` where it trains, or computes elsewhere or in another precision.
    ///
    /// # Errors
    /// Where a weight has another rank.
    pub fn new(
        to_qkv: (&Tensor, &Tensor),
        to_out: (&Tensor, &Tensor),
        num_heads: usize,
    ) -> TensorResult<Option<Self>> {
        if !fits(&[to_qkv.0, to_qkv.1, to_out.0, to_out.1]) {
            return Ok(None);
        }
        let channels = to_out.1.dim(0)?;
        // A copy: a view would keep the whole weight in memory beside its packed form.
        let part =
            |xs: &Tensor| xs.narrow(0, channels, xs.dim(0)?.saturating_sub(channels))?.force_contiguous();
        let to_kv = (part(to_qkv.0)?, part(to_qkv.1)?);
        let (to_qkv, to_out) = (Affine::new(to_qkv.0, to_qkv.1)?, Affine::new(to_out.0, to_out.1)?);
        Ok(Some(Self(Arc::new(AttentionMaps { to_qkv, to_out, to_kv, num_heads }))))
    }

    /// Keys and values of tokens from outside the picture.
    ///
    /// # Shapes
    /// `tokens` (B, M, C)
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn key_value(&self, tokens: &Tensor) -> TensorResult<KeyValue> {
        let (weight, bias) = &self.0.to_kv;
        Ok(KeyValue::new(linear(tokens, weight, Some(bias))?))
    }

    /// Applies the block.
    ///
    /// # Shapes
    /// `xs` (B, N, C), `text` and `user` of batch B and width C; result (B, N, C).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(&self, xs: &Tensor, text: &KeyValue, user: Option<&KeyValue>) -> TensorResult {
        let (external, attention) = decoupled(xs.dim(1)?, text, user, self.0.num_heads)?;
        let keeps = xs.track_op() || external.track_op();
        let op = AttentionForward { maps: self.0.clone(), attention, qkv: keeps.then(Default::default) };
        op::apply(op, &[xs, &external])
    }
}

/// (x, external) to the block's result.
struct AttentionForward {
    maps: Arc<AttentionMaps>,
    attention: Attention,
    /// Queries, keys and values, where there is a way back.
    qkv: Option<Stash>,
}

impl Fused for AttentionForward {
    const NAME: &'static str = "attention-block";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, external, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let channels = self.maps.to_out.outputs();
        match (xs, external) {
            ([b, _, c], [batch, _, double]) if *c == channels && b == batch && *double == 2 * channels => {
                Ok(xs.into())
            }
            _ => candle_core::bail!(
                "attention-block: input {xs:?}, external {external:?}, for {channels} channels"
            ),
        }
    }

    fn cpu(&self, [xs, external, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (maps, [batch, positions, channels]) = (&*self.maps, [0, 1, 2].map(|axis| xs.dims[axis]));
        let sizes = self.attention.sizes(positions, channels, external.dims);
        let (width, triple) = (positions * channels, 3 * positions * channels);
        let mut kept = unwritten(if self.qkv.is_some() { batch * triple } else { 0 });
        let widths = (width, if self.qkv.is_some() { triple } else { 0 });
        slice::by_rows_of_two(batch, (out, &mut kept), widths, |samples, out, kept| {
            let mut weights = unwritten(positions * sizes.keys());
            let [mut normed, mut mixed] = [width; 2].map(unwritten);
            let mut own = unwritten(if widths.1 == 0 { triple } else { 0 });
            for (i, b) in samples.enumerate() {
                let (x, out) = (xs.sample(b), &mut out[i * width..][..width]);
                let qkv = if widths.1 == 0 { &mut own[..] } else { &mut kept[i * triple..][..triple] };
                norm::normalise(&mut normed, channels, x, &[], &[], EPSILON);
                maps.to_qkv.forward(qkv, &normed);
                self.attention.mix(sizes, b, (qkv, external.sample(b)), &mut weights, &mut mixed);
                maps.to_out.forward_onto(out, &mixed, x);
            }
        });
        if let Some(qkv) = &self.qkv {
            let _ = qkv.set(Arc::new(kept));
        }
    }

    fn gradients(
        &self,
        [xs, external, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let qkv = self.qkv.as_ref().and_then(OnceLock::get).cloned();
        let Some(qkv) = qkv else { candle_core::bail!("attention-block: nothing was kept for the way back") };
        let (of_own, of_external) = (xs.track_op(), external.track_op());
        let attention = AttentionBackward { op: self.attention.clone(), of_own, of_external };
        let op = AttentionBlockBackward { maps: self.maps.clone(), attention, qkv };
        let both = op::backward(op, &[xs, external, grad])?;
        let own = if of_own { xs.elem_count() } else { 0 };
        Ok([
            wanted(xs, || both.narrow(0, 0, own)?.reshape(xs.shape()))?,
            wanted(external, || both.narrow(0, own, external.elem_count())?.reshape(external.shape()))?,
            None,
        ])
    }
}

/// (x, external, dy) to dx and, after all of it, the gradient of the external keys and values, those that are asked for.
struct AttentionBlockBackward {
    maps: Arc<AttentionMaps>,
    attention: AttentionBackward,
    qkv: Arc<Vec<f32>>,
}

impl Fused for AttentionBlockBackward {
    const NAME: &'static str = "attention-block-backward";

    fn shape(&self, [xs, external, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let count = |of: bool, dims: &[usize]| if of { dims.iter().product::<usize>() } else { 0 };
        Ok((count(self.attention.of_own, xs) + count(self.attention.of_external, external)).into())
    }

    fn cpu(&self, [xs, external, dy]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (maps, [batch, positions, channels]) = (&*self.maps, [0, 1, 2].map(|axis| xs.dims[axis]));
        let AttentionBackward { op, of_own, of_external } = &self.attention;
        let sizes = op.sizes(positions, channels, external.dims);
        let (width, triple) = (positions * channels, 3 * positions * channels);
        let wanted = |of: bool, width: usize| if of { width } else { 0 };
        let widths = (wanted(*of_own, width), wanted(*of_external, external.dims[1] * 2 * channels));
        let (dx, d_external) = out.split_at_mut(batch * widths.0);
        slice::by_rows_of_two(batch, (dx, d_external), widths, |samples, dx, d_external| {
            let mut workspace = [positions * sizes.keys(); 2].map(unwritten);
            let [mut dmixed, mut dnormed] = [width; 2].map(unwritten);
            let mut dqkv = unwritten(wanted(*of_own, triple));
            for (i, b) in samples.enumerate() {
                let (qkv, dy) = (&self.qkv[b * triple..][..triple], dy.sample(b));
                maps.to_out.back(&mut dmixed, dy);
                let d_external = &mut d_external[i * widths.1..][..widths.1];
                let sources = (qkv, external.sample(b));
                self.attention.sample(sizes, b, sources, &dmixed, [&mut dqkv, d_external], &mut workspace);
                if *of_own {
                    maps.to_qkv.back(&mut dnormed, &dqkv);
                    let dx = &mut dx[i * width..][..width];
                    norm::normalise_backward(dx, channels, xs.sample(b), &[], &dnormed, EPSILON);
                    slice::add_rows(dx, dy);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn attention_composed(
        xs: &Tensor,
        [to_qkv, to_out]: [&(Tensor, Tensor); 2],
        num_heads: usize,
        text: &Tensor,
        user: Option<&Tensor>,
    ) -> Tensor {
        let of = |t: &Tensor| t.to_dtype(xs.dtype()).unwrap();
        let map = |ys: &Tensor, (w, b): &(Tensor, Tensor)| linear(ys, &of(w), Some(&of(b))).unwrap();
        let qkv = map(&layer_norm(xs, None, 1e-6).unwrap(), to_qkv);
        let (text, user) = (KeyValue::new(of(text)), user.map(|user| KeyValue::new(of(user))));
        let mixed = decoupled_attention(&qkv, &text, user.as_ref(), num_heads).unwrap();
        (xs + map(&mixed, to_out)).unwrap()
    }

    #[test]
    fn an_attention_block_equals_its_parts_one_after_the_other() {
        let (channels, heads) = (24, 3);
        let xs = var(&Device::Cpu, &[2, 9, channels], 0);
        let text = random(&[2, 13, 2 * channels], 1, 1.0);
        let user = var(&Device::Cpu, &[2, 4, 2 * channels], 2);
        let (to_qkv, to_out) = (map(3 * channels, channels, 3), map(channels, channels, 5));
        let packed =
            PackedAttention::new((&to_qkv.0, &to_qkv.1), (&to_out.0, &to_out.1), heads).unwrap().unwrap();
        let kv = |xs: &Tensor| KeyValue::new(xs.clone());
        for user in [None, Some(user.as_tensor())] {
            let theirs = single(&attention_composed(&double(&xs), [&to_qkv, &to_out], heads, &text, user));
            let of = |xs: &Tensor, user: Option<&Tensor>| {
                packed.forward(xs, &kv(&text), user.map(kv).as_ref()).unwrap()
            };
            let variables: Vec<&Tensor> = std::iter::once(xs.as_tensor()).chain(user).collect();
            same(&of(&xs, user), &theirs, &variables, 5e-6);
            if let Some(user) = user {
                // Before the first user branch nothing of the positions trains.
                same(&of(&xs.detach(), Some(user)), &theirs, &[user], 5e-6);
            }
            assert!(!of(&xs.detach(), user.map(|user| user.detach()).as_ref()).track_op());
        }
        let tokens = random(&[2, 13, channels], 7, 1.0);
        let theirs =
            linear(&tokens, &to_qkv.0, Some(&to_qkv.1)).unwrap().narrow(2, channels, 2 * channels).unwrap();
        assert_eq!(values(packed.key_value(&tokens).unwrap().tensor()), values(&theirs));
    }

    #[test]
    fn at_the_desk_a_block_rounds_as_its_parts_do_and_knows_no_batch() {
        let (channels, heads) = (128, 4);
        let xs = random(&[5, 64, channels], 0, 1.0);
        let one = |t: &Tensor| t.narrow(0, 3, 1).unwrap();
        let (to_qkv, to_out) = (map(3 * channels, channels, 3), map(channels, channels, 5));
        let packed =
            PackedAttention::new((&to_qkv.0, &to_qkv.1), (&to_out.0, &to_out.1), heads).unwrap().unwrap();
        let (text, user) = (random(&[5, 28, 2 * channels], 7, 1.0), random(&[5, 4, 2 * channels], 8, 1.0));
        let kv = |t: &Tensor| KeyValue::new(t.clone());
        let all = packed.forward(&xs, &kv(&text), Some(&kv(&user))).unwrap();
        let composed = attention_composed(&xs, [&to_qkv, &to_out], heads, &text, Some(&user));
        assert_eq!(values(&all), values(&composed));
        let alone = packed.forward(&one(&xs), &kv(&one(&text)), Some(&kv(&one(&user)))).unwrap();
        assert_eq!(values(&alone), values(&one(&all)));
    }
}
