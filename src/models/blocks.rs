//! What Stages C and B and the desk's latent codec are built of.

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::nn::{self, TensorResult};

/// An affine map with the checkpoint's `weight` and `bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// The map whose weight is drawn from `init` where it is a new variable; the bias starts at zero.
    pub fn new(inputs: usize, outputs: usize, init: Init, vb: VarBuilder) -> TensorResult<Self> {
        let weight = nn::frozen_weight(&vb.get_with_hints((outputs, inputs), "weight", init)?)?;
        let bias = vb.get_with_hints(outputs, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias })
    }

    /// A 1×1 convolution of the checkpoint, which is a linear map of the channels.
    pub fn pointwise(inputs: usize, outputs: usize, init: Init, vb: VarBuilder) -> TensorResult<Self> {
        let weight = vb.get_with_hints((outputs, inputs, 1, 1), "weight", init)?;
        let weight = nn::frozen_weight(&weight.reshape((outputs, inputs))?)?;
        let bias = vb.get_with_hints(outputs, "bias", Init::Const(0.0))?;
        Ok(Self { weight, bias })
    }

    /// (…, inputs) to (…, outputs).
    pub fn forward(&self, xs: &Tensor) -> TensorResult {
        nn::linear(xs, &self.weight, Some(&self.bias))
    }

    /// The precision of its weight.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// Its weight and bias.
    pub fn parts(&self) -> (&Tensor, &Tensor) {
        (&self.weight, &self.bias)
    }

    /// Its weight and bias.
    pub fn into_parts(self) -> (Tensor, Tensor) {
        (self.weight, self.bias)
    }
}

/// Affine maps of the same input, applied as one: their outputs lie side by side.
///
/// Frozen ones are joined once; those that train keep their variables, and are joined each time.
#[derive(Debug, Clone)]
pub struct SideBySide {
    parts: Vec<(Tensor, Tensor)>,
}

impl SideBySide {
    /// Joins maps by weight (outputs, inputs) and bias (outputs).
    pub fn new(parts: Vec<(Tensor, Tensor)>) -> TensorResult<Self> {
        let trains = parts.iter().any(|(weight, bias)| weight.track_op() || bias.track_op());
        let parts = Self { parts };
        if trains {
            return Ok(parts);
        }
        let (weight, bias) = parts.joined()?;
        Ok(Self { parts: vec![(nn::frozen_weight(&weight)?, bias)] })
    }

    fn joined(&self) -> TensorResult<(Tensor, Tensor)> {
        if let [whole] = &self.parts[..] {
            return Ok(whole.clone());
        }
        let (weights, biases): (Vec<&Tensor>, Vec<&Tensor>) = self.parts.iter().map(|(w, b)| (w, b)).unzip();
        Ok((Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?))
    }

    /// Weight and bias of all as one map, where it is frozen.
    pub fn frozen(&self) -> Option<(&Tensor, &Tensor)> {
        match &self.parts[..] {
            [(weight, bias)] if !weight.track_op() && !bias.track_op() => Some((weight, bias)),
            _ => None,
        }
    }

    /// (…, inputs) to (…, all outputs).
    pub fn forward(&self, xs: &Tensor) -> TensorResult {
        self.forward_from(xs, 0)
    }

    /// As [`SideBySide::forward`] without the first `skip` outputs.
    pub fn forward_from(&self, xs: &Tensor, skip: usize) -> TensorResult {
        let (weight, bias) = self.joined()?;
        let count = weight.dim(0)? - skip;
        nn::linear(xs, &weight.narrow(0, skip, count)?, Some(&bias.narrow(0, skip, count)?))
    }
}

/// The initialisation of a linear map that feeds `inputs` unit-variance values on.
pub fn fan_in(inputs: usize) -> Init {
    Init::Randn { mean: 0.0, stdev: 1.0 / (inputs as f64).sqrt() }
}

/// The patches of pictures (B, 3, H, W), row by row, each as the `3·p·p` numbers that a convolution's kernel would see: (B,
/// h·w, 3·p·p). A convolution whose stride is its size is a linear map of them.
pub fn patches(pixels: &Tensor, patch: usize) -> TensorResult {
    let (batch, channels, height, width) = pixels.dims4()?;
    let (down, across) = (height / patch, width / patch);
    pixels
        .narrow(2, 0, down * patch)?
        .narrow(3, 0, across * patch)?
        .reshape((batch, channels, down, patch, across, patch))? // (B, 3, h, p, w, p)
        .permute((0, 2, 4, 1, 3, 5))?
        .reshape((batch, down * across, channels * patch * patch)) // (B, h·w, 3·p·p)
}

/// Layer normalisation without affine part, as everywhere in Stage C.
pub fn norm(xs: &Tensor) -> TensorResult {
    nn::layer_norm(xs, None, 1e-6)
}

/// A residual block: depthwise 3×3, norm, [skip], MLP with global response normalisation.
#[derive(Debug, Clone)]
pub enum ResBlock {
    /// In single precision on the CPU, frozen: one operation.
    Packed(nn::PackedResidual),
    /// One operation after the other.
    Composed(nn::ResidualWeights),
}

impl ResBlock {
    /// A block over `width` channels that takes `skip` more beside them; one of `depth` blocks in a row.
    pub fn new(width: usize, skip: usize, depth: usize, vb: VarBuilder) -> TensorResult<Self> {
        let hidden = 4 * width;
        let channelwise = vb.pp("channelwise");
        let out = Init::Randn { mean: 0.0, stdev: (1.0 / (hidden * depth) as f64).sqrt() };
        let vector =
            |name: &str| channelwise.get_with_hints((1, 1, 1, hidden), name, Init::Const(0.0))?.flatten_all();
        let weights = nn::ResidualWeights {
            depthwise: (
                vb.get_with_hints((width, 1, 3, 3), "depthwise.weight", fan_in(9))?,
                vb.get_with_hints(width, "depthwise.bias", Init::Const(0.0))?,
            ),
            expand: Linear::new(width + skip, hidden, fan_in(width + skip), channelwise.pp(0))?.into_parts(),
            gamma: vector("2.gamma")?,
            beta: vector("2.beta")?,
            contract: Linear::new(hidden, width, out, channelwise.pp(4))?.into_parts(),
        };
        Ok(match nn::PackedResidual::new(&weights)? {
            Some(packed) => Self::Packed(packed),
            None => Self::Composed(weights),
        })
    }

    /// (B, N, C), the pixels of pictures of `size` (height, width), to the same.
    pub fn forward(&self, xs: &Tensor, size: (usize, usize), skip: Option<&Tensor>) -> TensorResult {
        let weights = match self {
            Self::Packed(packed) => return packed.forward(xs, size, skip),
            Self::Composed(weights) => weights,
        };
        let nn::ResidualWeights { depthwise, expand, gamma, beta, contract } = weights;
        let linear = |xs: &Tensor, (weight, bias): &(Tensor, Tensor)| nn::linear(xs, weight, Some(bias));
        let mut ys = norm(&nn::depthwise_conv3x3(xs, size, &depthwise.0, &depthwise.1)?)?;
        if let Some(skip) = skip {
            ys = Tensor::cat(&[&ys, skip], D::Minus1)?;
        }
        let ys = linear(&ys, expand)?; // (B, N, 4C)
        xs + linear(&nn::gelu_grn(&ys, gamma, beta)?, contract)?
    }
}

/// Modulation by the timestep and by further scalars.
#[derive(Debug, Clone)]
pub struct TimestepBlock {
    mappers: Vec<Linear>,
}

impl TimestepBlock {
    /// The modulation of `width` channels by embeddings of `inputs` numbers: the timestep's, and those of further scalars
    /// by their names.
    pub fn new(width: usize, inputs: usize, scalars: &[String], vb: VarBuilder) -> TensorResult<Self> {
        let names = scalars.iter().map(|name| format!("mapper_{name}"));
        let mappers = std::iter::once("mapper".to_owned())
            .chain(names)
            .map(|name| Linear::new(inputs, 2 * width, Init::Const(0.0), vb.pp(name)))
            .collect::<TensorResult<_>>()?;
        Ok(Self { mappers })
    }

    /// (B, N, C) to the same; each embedding is (B, inputs).
    pub fn forward(&self, xs: &Tensor, embeddings: &[Tensor]) -> TensorResult {
        let (_, _, c) = xs.dims3()?;
        let mut sum = self.mappers[0].forward(&embeddings[0])?;
        for (mapper, embedding) in self.mappers.iter().zip(embeddings).skip(1) {
            sum = (sum + mapper.forward(embedding)?)?;
        }
        let (scale, shift) = (sum.narrow(1, 0, c)?, sum.narrow(1, c, c)?);
        nn::modulate(xs, &scale, &shift)
    }
}

/// Attention over the picture's positions and the conditioning tokens, with the user's branch beside it.
#[derive(Debug, Clone)]
pub struct AttnBlock {
    kv_mapper: Linear,
    maps: AttentionMaps,
    num_heads: usize,
}

/// What an attention block computes with.
#[derive(Debug, Clone)]
enum AttentionMaps {
    /// In single precision on the CPU, frozen: one operation.
    Packed(nn::PackedAttention),
    /// One operation after the other; queries, keys and values in one product.
    Composed { to_qkv: SideBySide, to_out: Linear },
}

impl AttnBlock {
    /// A block over `width` channels whose conditioning tokens have width `conditioning`.
    pub fn new(width: usize, conditioning: usize, num_heads: usize, vb: VarBuilder) -> TensorResult<Self> {
        let attention = vb.pp("attention");
        let square = |name: &str| Linear::new(width, width, fan_in(width), attention.pp(name));
        let kv_mapper = Linear::new(conditioning, width, fan_in(conditioning), vb.pp("kv_mapper.1"))?;
        let parts = ["to_q", "to_k", "to_v"].into_iter().map(|name| Ok(square(name)?.into_parts()));
        let to_qkv = SideBySide::new(parts.collect::<TensorResult<_>>()?)?;
        let to_out = square("to_out.0")?;
        let packed = match to_qkv.frozen() {
            Some(joined) => nn::PackedAttention::new(joined, to_out.parts(), num_heads)?,
            None => None,
        };
        let maps = match packed {
            Some(packed) => AttentionMaps::Packed(packed),
            None => AttentionMaps::Composed { to_qkv, to_out },
        };
        Ok(Self { kv_mapper, maps, num_heads })
    }

    /// Keys and values of conditioning tokens.
    pub fn key_value(&self, tokens: &Tensor) -> TensorResult<nn::KeyValue> {
        let mapped = self.kv_mapper.forward(&nn::silu(tokens)?)?;
        let (_, _, width) = mapped.dims3()?;
        match &self.maps {
            AttentionMaps::Packed(packed) => packed.key_value(&mapped),
            AttentionMaps::Composed { to_qkv, .. } => {
                Ok(nn::KeyValue::new(to_qkv.forward_from(&mapped, width)?))
            }
        }
    }

    /// (B, N, C) to the same.
    pub fn forward(&self, xs: &Tensor, text: &nn::KeyValue, user: Option<&nn::KeyValue>) -> TensorResult {
        let (to_qkv, to_out) = match &self.maps {
            AttentionMaps::Packed(packed) => return packed.forward(xs, text, user),
            AttentionMaps::Composed { to_qkv, to_out } => (to_qkv, to_out),
        };
        let qkv = to_qkv.forward(&norm(xs)?)?; // (B, N, 3C)
        xs + to_out.forward(&nn::decoupled_attention(&qkv, text, user, self.num_heads)?)?
    }
}

/// Torch's pixel unshuffle (channel outermost, then the patch), channels last.
pub fn pixel_unshuffle_to_nhwc(xs: &Tensor, patch: usize) -> TensorResult {
    let (b, c, h, w) = xs.dims4()?;
    if h % patch != 0 || w % patch != 0 {
        candle_core::bail!("latents of {h}×{w} do not divide into patches of {patch}");
    }
    xs.reshape(&[b, c, h / patch, patch, w / patch, patch][..])?
        .permute(vec![0, 2, 4, 1, 3, 5])?
        .contiguous()?
        .reshape((b, h / patch, w / patch, c * patch * patch))
}

/// Torch's pixel shuffle of the head's channels (channel outermost, then the patch), and back to (B, C, H, W).
pub fn pixel_shuffle_to_nchw(xs: &Tensor, patch: usize) -> TensorResult {
    let (b, h, w, c) = xs.dims4()?;
    if patch == 1 {
        return xs.permute((0, 3, 1, 2))?.contiguous();
    }
    let channels = c / (patch * patch);
    xs.reshape(&[b, h, w, channels, patch, patch][..])?
        .permute(vec![0, 3, 1, 4, 2, 5])?
        .contiguous()?
        .reshape((b, channels, h * patch, w * patch))
}

/// The sinusoidal embedding of `r` in [0, 1] over 10,000 positions: sines, then cosines.
///
/// The phase reaches 10⁴ rad, where single precision resolves 10⁻³: every rounding must be torch's, hence `f32`
/// throughout and in its order.
pub fn timestep_embedding(r: &Tensor, width: usize) -> TensorResult {
    let half = width / 2;
    let frequencies = timestep_frequencies(half);
    let device = r.device();
    let r = r.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    let mut out = Vec::with_capacity(r.len() * width);
    for r in &r {
        let phases: Vec<f32> = frequencies.iter().map(|f| (r * 10_000.0) * f).collect();
        out.extend(phases.iter().map(|p| p.sin()));
        out.extend(phases.iter().map(|p| p.cos()));
        out.resize(out.len() + width % 2, 0.0);
    }
    Tensor::from_vec(out, (r.len(), width), device)
}

fn timestep_frequencies(half: usize) -> Vec<f32> {
    let step = -(10_000f64.ln() / (half as f64 - 1.0)) as f32;
    (0..half).map(|i| (i as f32 * step).exp()).collect()
}
