//! The residual block.

use super::super::op::unwritten;
use super::super::*;
use super::*;

/// The tensors of a residual block, as its checkpoint holds them.
#[derive(Debug, Clone)]
pub struct ResidualWeights {
    /// (C, 1, 3, 3) and (C).
    pub depthwise: (Tensor, Tensor),
    /// (4C, C + skip) and (4C).
    pub expand: (Tensor, Tensor),
    /// (4C).
    pub gamma: Tensor,
    /// (4C).
    pub beta: Tensor,
    /// (C, 4C) and (C).
    pub contract: (Tensor, Tensor),
}

/// A frozen residual block: `x + contract(GRN(GELU(expand([norm(depthwise(x)); skip]))))`.
#[derive(Debug, Clone)]
pub struct PackedResidual(Arc<Residual>);

#[derive(Debug)]
struct Residual {
    /// Nine rows of channels.
    taps: Vec<f32>,
    depthwise_bias: Vec<f32>,
    expand: Affine,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    contract: Affine,
}

impl PackedResidual {
    /// Packs a block; `None` where it trains, or computes elsewhere or in another precision.
    ///
    /// # Errors
    /// Where a weight has another rank.
    pub fn new(weights: &ResidualWeights) -> TensorResult<Option<Self>> {
        let ResidualWeights { depthwise, expand, gamma, beta, contract } = weights;
        let pairs = [depthwise, expand, contract].into_iter().flat_map(|(weight, bias)| [weight, bias]);
        if !fits(&pairs.chain([gamma, beta]).collect::<Vec<_>>()) {
            return Ok(None);
        }
        Ok(Some(Self(Arc::new(Residual {
            taps: conv::by_tap(&elements(&depthwise.0)?, depthwise.0.dim(0)?),
            depthwise_bias: elements(&depthwise.1)?,
            expand: Affine::new(&expand.0, &expand.1)?,
            gamma: elements(gamma)?,
            beta: elements(beta)?,
            contract: Affine::new(&contract.0, &contract.1)?,
        }))))
    }

    /// Applies the block.
    ///
    /// # Shapes
    /// `xs` (B, N, C), the pixels of pictures of `size` (H, W); `skip` (B, N, the channels that the block takes besides);
    /// result (B, N, C).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(&self, xs: &Tensor, size: (usize, usize), skip: Option<&Tensor>) -> TensorResult {
        let keeps = xs.track_op() || skip.is_some_and(|skip| skip.track_op());
        let op = ResidualForward { block: self.0.clone(), size, hidden: keeps.then(Default::default) };
        let arguments: Vec<&Tensor> = std::iter::once(xs).chain(skip).collect();
        op::apply(op, &arguments)
    }
}

impl Residual {
    fn channels(&self) -> usize {
        self.contract.outputs()
    }

    /// One sample's `norm(depthwise(x))` into `normed`; `convolved` gets what the norm is taken of.
    fn normed(&self, size: (usize, usize), x: &[f32], convolved: &mut [f32], normed: &mut [f32]) {
        convolved.chunks_exact_mut(self.channels()).for_each(|row| row.copy_from_slice(&self.depthwise_bias));
        conv::forward(convolved, size, x, &self.taps);
        norm::normalise(normed, self.channels(), convolved, &[], &[], EPSILON);
    }
}

/// (x, skip) to the block's result.
struct ResidualForward {
    block: Arc<Residual>,
    size: (usize, usize),
    /// The expanded rows, where there is a way back.
    hidden: Option<Stash>,
}

impl Fused for ResidualForward {
    const NAME: &'static str = "residual-block";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, skip, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let (channels, inputs) = (self.block.channels(), self.block.expand.inputs());
        let fits = match (xs, skip) {
            ([_, n, c], [0]) => *n == self.size.0 * self.size.1 && *c == channels && inputs == channels,
            ([b, n, c], [batch, positions, more]) => {
                *n == self.size.0 * self.size.1
                    && *c == channels
                    && (b, n) == (batch, positions)
                    && inputs == c + more
            }
            _ => false,
        };
        if !fits {
            candle_core::bail!(
                "residual-block: input {xs:?} of pictures {:?}, skip {skip:?}, for {channels} of {inputs} channels",
                self.size
            );
        }
        Ok(xs.into())
    }

    fn cpu(&self, [xs, skip, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (block, positions) = (&*self.block, xs.dims[1]);
        let (channels, more) = (block.channels(), block.expand.inputs() - block.channels());
        let (wide, batch) = (positions * block.expand.outputs(), xs.dims[0]);
        let mut kept = unwritten(if self.hidden.is_some() { batch * wide } else { 0 });
        let widths = (positions * channels, if self.hidden.is_some() { wide } else { 0 });
        slice::by_rows_of_two(batch, (out, &mut kept), widths, |samples, out, kept| {
            let mut normed = unwritten(positions * channels);
            let mut joined = unwritten(if more > 0 { positions * (channels + more) } else { 0 });
            let (mut own, mut activated) = (unwritten(if widths.1 == 0 { wide } else { 0 }), unwritten(wide));
            for (i, b) in samples.enumerate() {
                let (x, out) = (xs.sample(b), &mut out[i * widths.0..][..widths.0]);
                // The result's own place is free until the end.
                block.normed(self.size, x, out, &mut normed);
                let inputs = if more > 0 {
                    join(&mut joined, &normed, skip.sample(b), more);
                    &joined
                } else {
                    &normed
                };
                let hidden = if widths.1 == 0 { &mut own[..] } else { &mut kept[i * wide..][..wide] };
                block.expand.forward(hidden, inputs);
                grn::gelu_respond(&mut activated, hidden, &block.gamma, &block.beta);
                block.contract.forward_onto(out, &activated, x);
            }
        });
        if let Some(hidden) = &self.hidden {
            let _ = hidden.set(Arc::new(kept));
        }
    }

    fn gradients(
        &self,
        [xs, skip, _]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        let hidden = self.hidden.as_ref().and_then(OnceLock::get).cloned();
        let Some(hidden) = hidden else {
            candle_core::bail!("residual-block: nothing was kept for the way back")
        };
        let op = ResidualBackward {
            block: self.block.clone(),
            size: self.size,
            hidden,
            of_own: xs.track_op(),
            of_skip: skip.track_op(),
        };
        let both = op::backward(op, &[xs, grad])?;
        let own = if xs.track_op() { xs.elem_count() } else { 0 };
        Ok([
            wanted(xs, || both.narrow(0, 0, own)?.reshape(xs.shape()))?,
            wanted(skip, || both.narrow(0, own, skip.elem_count())?.reshape(skip.shape()))?,
            None,
        ])
    }
}

/// Rows of `first` with the `more` channels of `second` beside them.
fn join(out: &mut [f32], first: &[f32], second: &[f32], more: usize) {
    let channels = first.len() / (second.len() / more);
    let rows = out.chunks_exact_mut(channels + more);
    for (out, (first, second)) in rows.zip(first.chunks_exact(channels).zip(second.chunks_exact(more))) {
        out[..channels].copy_from_slice(first);
        out[channels..].copy_from_slice(second);
    }
}

/// (x, dy) to dx and, after all of it, the gradient of skip, those that are asked for.
struct ResidualBackward {
    block: Arc<Residual>,
    size: (usize, usize),
    hidden: Arc<Vec<f32>>,
    of_own: bool,
    of_skip: bool,
}

impl ResidualBackward {
    /// Elements of each position in the two results.
    fn widths(&self) -> (usize, usize) {
        let (channels, inputs) = (self.block.channels(), self.block.expand.inputs());
        (if self.of_own { channels } else { 0 }, if self.of_skip { inputs - channels } else { 0 })
    }
}

impl Fused for ResidualBackward {
    const NAME: &'static str = "residual-block-backward";

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let (own, other) = self.widths();
        Ok((xs[0] * xs[1] * (own + other)).into())
    }

    fn cpu(&self, [xs, dy, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (block, positions, batch) = (&*self.block, xs.dims[1], xs.dims[0]);
        let (channels, inputs, wide) = (block.channels(), block.expand.inputs(), block.expand.outputs());
        let (own, other) = self.widths();
        let (dx, dskip) = out.split_at_mut(batch * positions * own);
        slice::by_rows_of_two(
            batch,
            (dx, dskip),
            (positions * own, positions * other),
            |samples, dx, dskip| {
                let buffer = |width: usize| unwritten(positions * width);
                let [mut dactivated, mut dhidden, mut cdf] = [wide; 3].map(buffer);
                let (mut djoined, mut dnormed) = (buffer(inputs), buffer(channels));
                let [mut convolved, mut dconvolved] = [channels; 2].map(buffer);
                for (i, b) in samples.enumerate() {
                    let (x, dy) = (xs.sample(b), dy.sample(b));
                    let hidden = &self.hidden[b * positions * wide..][..positions * wide];
                    block.contract.back(&mut dactivated, dy);
                    grn::gelu_respond_backward(&mut dhidden, hidden, &dactivated, &block.gamma, &mut cdf);
                    block.expand.back(&mut djoined, &dhidden);
                    if other > 0 {
                        let rows =
                            dskip[i * positions * other..][..positions * other].chunks_exact_mut(other);
                        rows.zip(djoined.chunks_exact(inputs))
                            .for_each(|(skip, row)| skip.copy_from_slice(&row[channels..]));
                    }
                    if own == 0 {
                        continue;
                    }
                    if inputs > channels {
                        let rows = dnormed.chunks_exact_mut(channels).zip(djoined.chunks_exact(inputs));
                        rows.for_each(|(normed, row)| normed.copy_from_slice(&row[..channels]));
                    } else {
                        std::mem::swap(&mut dnormed, &mut djoined);
                    }
                    // The norm itself is not needed again, only what it is taken of.
                    block.normed(self.size, x, &mut convolved, &mut dconvolved);
                    norm::normalise_backward(&mut dconvolved, channels, &convolved, &[], &dnormed, EPSILON);
                    let dx = &mut dx[i * positions * channels..][..positions * channels];
                    conv::backward(dx, self.size, &dconvolved, &block.taps);
                    slice::add_rows(dx, dy);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn residual(channels: usize, skip: usize) -> ResidualWeights {
        ResidualWeights {
            depthwise: (random(&[channels, 1, 3, 3], 10, 0.3), random(&[channels], 11, 0.1)),
            expand: map(4 * channels, channels + skip, 12),
            gamma: random(&[4 * channels], 14, 0.5),
            beta: random(&[4 * channels], 15, 0.5),
            contract: map(channels, 4 * channels, 16),
        }
    }

    /// The same, one operation after the other, in the precision of `xs`.
    fn residual_composed(
        xs: &Tensor,
        size: (usize, usize),
        skip: Option<&Tensor>,
        weights: &ResidualWeights,
    ) -> Tensor {
        let of = |t: &Tensor| t.to_dtype(xs.dtype()).unwrap();
        let (w, b) = (of(&weights.depthwise.0), of(&weights.depthwise.1));
        let mut ys = layer_norm(&depthwise_conv3x3(xs, size, &w, &b).unwrap(), None, 1e-6).unwrap();
        if let Some(skip) = skip {
            ys = Tensor::cat(&[&ys, skip], 2).unwrap();
        }
        let map = |ys: &Tensor, (w, b): &(Tensor, Tensor)| linear(ys, &of(w), Some(&of(b))).unwrap();
        let ys = gelu_grn(&map(&ys, &weights.expand), &of(&weights.gamma), &of(&weights.beta)).unwrap();
        (xs + map(&ys, &weights.contract)).unwrap()
    }

    #[test]
    fn a_residual_block_equals_its_parts_one_after_the_other() {
        let (size, channels) = ((4, 5), 24);
        let (xs, skip) = (var(&Device::Cpu, &[3, 20, channels], 0), var(&Device::Cpu, &[3, 20, 16], 1));
        for skip in [None, Some(skip.as_tensor())] {
            let weights = residual(channels, skip.map_or(0, |skip| skip.dims()[2]));
            let packed = PackedResidual::new(&weights).unwrap().unwrap();
            let doubled = skip.map(double);
            let theirs = single(&residual_composed(&double(&xs), size, doubled.as_ref(), &weights));
            let variables: Vec<&Tensor> = std::iter::once(xs.as_tensor()).chain(skip).collect();
            same(&packed.forward(&xs, size, skip).unwrap(), &theirs, &variables, 5e-6);
            // Where only one of the two asks for a gradient, that one is the same.
            if let Some(skip) = skip {
                same(&packed.forward(&xs.detach(), size, Some(skip)).unwrap(), &theirs, &[skip], 5e-6);
                same(&packed.forward(&xs, size, Some(&skip.detach())).unwrap(), &theirs, &[&xs], 5e-6);
            }
            let frozen = packed.forward(&xs.detach(), size, skip.map(|s| s.detach()).as_ref()).unwrap();
            assert!(!frozen.track_op() && distance(&frozen, &theirs) < 5e-6);
        }
    }

    #[test]
    fn at_the_desk_a_block_rounds_as_its_parts_do_and_knows_no_batch() {
        let (size, channels) = ((8, 8), 128);
        let xs = random(&[5, 64, channels], 0, 1.0);
        let weights = residual(channels, channels);
        let skip = random(&[5, 64, channels], 1, 1.0);
        let packed = PackedResidual::new(&weights).unwrap().unwrap();
        let all = packed.forward(&xs, size, Some(&skip)).unwrap();
        assert_eq!(values(&all), values(&residual_composed(&xs, size, Some(&skip), &weights)));
        let one = |t: &Tensor| t.narrow(0, 3, 1).unwrap();
        let alone = packed.forward(&one(&xs), size, Some(&one(&skip))).unwrap();
        assert_eq!(values(&alone), values(&one(&all)));
    }

    #[test]
    fn what_trains_is_not_packed_and_shapes_that_do_not_fit_are_refused() {
        let weights = residual(24, 0);
        let trains =
            ResidualWeights { gamma: var(&Device::Cpu, &[96], 0).as_tensor().clone(), ..weights.clone() };
        assert!(PackedResidual::new(&trains).unwrap().is_none());
        let half = ResidualWeights { gamma: weights.gamma.to_dtype(DType::BF16).unwrap(), ..weights.clone() };
        assert!(PackedResidual::new(&half).unwrap().is_none());
        let packed = PackedResidual::new(&weights).unwrap().unwrap();
        let xs = random(&[2, 20, 24], 0, 1.0);
        let message = packed.forward(&xs, (4, 4), None).unwrap_err().to_string();
        assert!(message.contains("[2, 20, 24]") && message.contains("(4, 4)"), "{message}");
        assert!(packed.forward(&xs, (4, 5), Some(&xs)).is_err());
    }
}
