//! Convolutions over channels-last pictures: depthwise 3×3, and the rearrangements that make patches of pixels.
//!
//! Inside a model a picture is the row of its pixels, (B, N, C) with N = H·W, as attention and linear maps take it.

use multiversion::multiversion;

use super::slice::LANES;
use super::*;

/// A depthwise 3×3 convolution with zero padding and stride 1.
///
/// # Shapes
/// `xs` (B, N, C), row by row the pixels of pictures of `size` (H, W); `weight` (C, 1, 3, 3) as torch stores it, `bias`
/// (C); result (B, N, C).
///
/// # Errors
/// Where the shapes do not fit.
pub fn depthwise_conv3x3(xs: &Tensor, size: (usize, usize), weight: &Tensor, bias: &Tensor) -> TensorResult {
    op::apply(Depthwise(size), &[xs, weight, bias])
}

/// Height and width of the pictures.
struct Depthwise((usize, usize));

/// For each output pixel, calls `body(output, input)` with the offsets of one tap's pixels, row by row.
#[inline(always)]
fn taps(height: usize, width: usize, channels: usize, mut body: impl FnMut(usize, usize, usize, usize)) {
    // body(tap, first output element, first input element, run of elements): a tap shifts a whole row at once.
    for tap in 0..9 {
        let (dy, dx) = (tap / 3, tap % 3);
        let (left, run) = match dx {
            0 => (1, width - 1),
            1 => (0, width),
            _ => (0, width - 1),
        };
        if run == 0 {
            continue;
        }
        for y in 0..height {
            if (dy == 0 && y == 0) || (dy == 2 && y + 1 == height) {
                continue;
            }
            let out = (y * width + left) * channels;
            let input = ((y + dy - 1) * width + left + dx - 1) * channels;
            body(tap, out, input, run * channels);
        }
    }
}

/// Torch's (C, 1, 3, 3) as nine rows of C.
pub(super) fn by_tap(weight: &[f32], channels: usize) -> Vec<f32> {
    (0..9 * channels).map(|i| weight[(i % channels) * 9 + i / channels]).collect()
}

/// The taps of a pixel whose other end lies within the picture, in order: the first element of that pixel, and the tap's
/// number; and how many there are. On the way back the ends change places.
#[inline(always)]
fn taps_of(
    (y, x): (usize, usize),
    (height, width): (usize, usize),
    channels: usize,
    back: bool,
) -> ([(usize, usize); 9], usize) {
    // Of three taps along an axis: which are within, and where the other end is.
    let within = |at: usize, count: usize| {
        let (low, high) = (usize::from(at == 0), usize::from(at + 1 == count));
        if back { high..3 - low } else { low..3 - high }
    };
    let end = |at: usize, tap: usize| if back { at + 1 - tap } else { at + tap - 1 };
    let (mut taps, mut count) = ([(0, 0); 9], 0);
    for dy in within(y, height) {
        for dx in within(x, width) {
            taps[count] = ((end(y, dy) * width + end(x, dx)) * channels, 3 * dy + dx);
            count += 1;
        }
    }
    (taps, count)
}

/// Adds to each pixel its taps, in their order, a register of channels at a time.
#[inline(always)]
fn convolve_sample(out: &mut [f32], size: (usize, usize), input: &[f32], w: &[f32], back: bool) {
    let channels = w.len() / 9;
    for (at, out) in out.chunks_exact_mut(channels).enumerate() {
        let (taps, count) = taps_of((at / size.1, at % size.1), size, channels, back);
        let ends = taps[..count]
            .iter()
            .map(|&(pixel, tap)| (&input[pixel..][..channels], &w[tap * channels..][..channels]));
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        let from = whole.len() * LANES;
        for (i, sums) in whole.iter_mut().enumerate() {
            for (xs, ws) in ends.clone() {
                let pairs = xs[i * LANES..][..LANES].iter().zip(&ws[i * LANES..][..LANES]);
                sums.iter_mut().zip(pairs).for_each(|(sum, (x, w))| *sum = x.mul_add(*w, *sum));
            }
        }
        for (xs, ws) in ends {
            let pairs = xs[from..].iter().zip(&ws[from..]);
            rest.iter_mut().zip(pairs).for_each(|(out, (x, w))| *out = x.mul_add(*w, *out));
        }
    }
}

/// One sample's convolution, added to `y`; `w` holds nine rows of channels.
#[multiversion(targets = "simd")]
pub(super) fn forward(y: &mut [f32], size: (usize, usize), x: &[f32], w: &[f32]) {
    convolve_sample(y, size, x, w, false);
}

/// The gradient with respect to one sample's input, added to `dx`.
#[multiversion(targets = "simd")]
pub(super) fn backward(dx: &mut [f32], size: (usize, usize), dy: &[f32], w: &[f32]) {
    convolve_sample(dx, size, dy, w, true);
}

/// The gradient with respect to the weight from one sample, added to the nine rows of `dw`.
#[multiversion(targets = "simd")]
fn weight_gradient(dw: &mut [f32], (height, width): (usize, usize), x: &[f32], dy: &[f32]) {
    let channels = dw.len() / 9;
    taps(height, width, channels, |tap, out, input, run| {
        let dw = &mut dw[tap * channels..][..channels];
        let pixels = x[input..input + run].chunks_exact(channels);
        for (x, dy) in pixels.zip(dy[out..out + run].chunks_exact(channels)) {
            for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                *dw = x.mul_add(*dy, *dw);
            }
        }
    });
}

impl Fused for Depthwise {
    const NAME: &'static str = "depthwise-conv3x3";
    const KERNEL: bool = true;

    fn shape(&self, [xs, weight, bias]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        let (height, width) = self.0;
        match xs {
            [_, count, channels]
                if *count == height * width && weight == [*channels, 1, 3, 3] && bias == [*channels] =>
            {
                Ok(xs.into())
            }
            _ => candle_core::bail!(
                "depthwise-conv3x3: input {xs:?} of pictures {height}×{width}, weight {weight:?}, bias {bias:?}"
            ),
        }
    }

    fn start(&self, [_, _, bias]: &[Argument; ARGUMENTS], count: usize) -> Vec<f32> {
        bias.data.repeat(count / bias.data.len())
    }

    fn cpu(&self, [xs, weight, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (channels, sample) = (xs.dims[2], xs.dims[1] * xs.dims[2]);
        let w = by_tap(&weight.data, channels);
        slice::by_rows(out, sample, |first, out| {
            for (y, x) in out.chunks_exact_mut(sample).zip(xs.data[first * sample..].chunks_exact(sample)) {
                forward(y, self.0, x, &w);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        convolve(call, self.0, Input(2), false)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, weight, bias) = (arguments[0], arguments[1], arguments[2]);
        let (height, width) = self.0;
        let (batch, count, channels) = xs.dims3()?;
        let xs = xs.reshape((batch, height, width, channels))?;
        let padded = xs.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
        let taps = weight.reshape((channels, 9))?.t()?.contiguous()?; // (9, C)
        let mut sum = xs.zeros_like()?.broadcast_add(bias)?;
        for tap in 0..9 {
            let shifted = padded.narrow(1, tap / 3, height)?.narrow(2, tap % 3, width)?;
            sum = (sum + shifted.broadcast_mul(&taps.get(tap)?)?)?;
        }
        sum.reshape((batch, count, channels))
    }

    fn gradients(
        &self,
        [xs, weight, bias]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([
            wanted(xs, || op::backward(DepthwiseInput(self.0), &[grad, weight]))?,
            wanted(weight, || op::backward(DepthwiseWeight(self.0), &[grad, xs]))?,
            wanted(bias, || op::backward(super::linear::ColumnSums, &[grad]))?,
        ])
    }
}

/// Pictures and weight are the first two arguments; `back` mirrors the taps and leaves the bias out.
#[cfg(feature = "cuda")]
fn convolve<T: cuda::Element>(
    call: &mut cuda::Call<T>,
    (height, width): (usize, usize),
    bias: Parameter,
    back: bool,
) -> TensorResult<()> {
    let [height, width, channels] = [height, width, call.width(0)].map(|size| U32(size as u32));
    let count = call.count();
    let parameters =
        [Input(0), Input(1), bias, Output, height, width, channels, I32(i32::from(back)), U64(count as u64)];
    call.launch("depthwise", cuda::elements(count), &parameters)
}

/// (dy, weight) to dx.
struct DepthwiseInput((usize, usize));

impl Fused for DepthwiseInput {
    const NAME: &'static str = "depthwise-input";
    const KERNEL: bool = true;

    fn shape(&self, [dy, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(dy.into())
    }

    fn cpu(&self, [dy, weight, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (channels, sample) = (dy.dims[2], dy.dims[1] * dy.dims[2]);
        let w = by_tap(&weight.data, channels);
        slice::by_rows(out, sample, |first, dx| {
            for (dx, dy) in dx.chunks_exact_mut(sample).zip(dy.data[first * sample..].chunks_exact(sample)) {
                backward(dx, self.0, dy, &w);
            }
        });
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        convolve(call, self.0, Input(2), true)
    }
}

/// (dy, x) to the weight's gradient.
struct DepthwiseWeight((usize, usize));

impl Fused for DepthwiseWeight {
    const NAME: &'static str = "depthwise-weight";

    fn shape(&self, [dy, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok((dy[2], 1, 3, 3).into())
    }

    fn cpu(&self, [dy, xs, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        counting::weight_gradient();
        let (channels, sample) = (dy.dims[2], dy.dims[1] * dy.dims[2]);
        let mut rows = vec![0f32; 9 * channels];
        for (x, dy) in xs.data.chunks_exact(sample).zip(dy.data.chunks_exact(sample)) {
            weight_gradient(&mut rows, self.0, x, dy);
        }
        out.iter_mut().enumerate().for_each(|(i, dw)| *dw = rows[(i % 9) * channels + i / 9]);
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        counting::weight_gradient();
        let (height, width) = self.0;
        let (batch, _, channels) = arguments[0].dims3()?;
        let picture = |xs: &Tensor| xs.reshape((batch, height, width, channels));
        let (dy, xs) = (picture(arguments[0])?, picture(arguments[1])?);
        let padded = xs.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
        let taps = (0..9)
            .map(|tap| (padded.narrow(1, tap / 3, height)?.narrow(2, tap % 3, width)? * &dy)?.sum((0, 1, 2)));
        Tensor::stack(&taps.collect::<TensorResult<Vec<_>>>()?, 1)?.reshape((channels, 1, 3, 3))
    }
}

/// Gathers each `block × block` patch into the channels: the first half of a strided convolution.
///
/// # Shapes
/// (B, H·s, W·s, C) to (B, H, W, s·s·C), the patch's rows outermost.
///
/// # Errors
/// Where the sides are no multiples of `block`.
pub fn space_to_depth(xs: &Tensor, block: usize) -> TensorResult {
    let (b, h, w, c) = xs.dims4()?;
    if h % block != 0 || w % block != 0 {
        candle_core::bail!("space-to-depth: {h}×{w} is no multiple of {block}");
    }
    xs.reshape((b, h / block, block, w / block, block * c))? // (B, H, s, W, s·C)
        .transpose(2, 3)?
        .contiguous()?
        .reshape((b, h / block, w / block, block * block * c))
}

/// The inverse of [`space_to_depth`]: the second half of a strided transposed convolution.
///
/// # Shapes
/// (B, H, W, s·s·C) to (B, H·s, W·s, C).
///
/// # Errors
/// Where the channels are no multiple of `block²`.
pub fn depth_to_space(xs: &Tensor, block: usize) -> TensorResult {
    let (b, h, w, c) = xs.dims4()?;
    if c % (block * block) != 0 {
        candle_core::bail!("depth-to-space: {c} channels are no multiple of {}", block * block);
    }
    xs.reshape((b, h, w, block, c / block))? // (B, H, W, s, s·C)
        .transpose(2, 3)?
        .contiguous()?
        .reshape((b, h * block, w * block, c / (block * block)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn depthwise_equals_its_composition() {
        on_each_device(|device| {
            for (h, w) in [(8, 8), (4, 5), (1, 3), (3, 1), (1, 1)] {
                let (xs, k, b) =
                    (var(device, &[2, h * w, 24], 0), var(device, &[24, 1, 3, 3], 1), var(device, &[24], 2));
                let ours = depthwise_conv3x3(&xs, (h, w), &k, &b).unwrap();
                let theirs = depthwise_conv3x3(&double(&xs), (h, w), &double(&k), &double(&b)).unwrap();
                same(&ours, &theirs.to_dtype(candle_core::DType::F32).unwrap(), &[&xs, &k, &b], 3e-6);
            }
        });
    }

    #[test]
    fn depthwise_equals_candles_grouped_convolution() {
        on_each_device(|device| {
            let (xs, k, b) =
                (var(device, &[2, 30, 8], 0), var(device, &[8, 1, 3, 3], 1), var(device, &[8], 2));
            let ours = depthwise_conv3x3(&xs, (5, 6), &k, &b).unwrap();
            let nchw = xs.reshape((2, 5, 6, 8)).unwrap().permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
            let theirs = nchw
                .conv2d(&k, 1, 1, 1, 8)
                .unwrap()
                .permute((0, 2, 3, 1))
                .unwrap()
                .broadcast_add(&b)
                .unwrap()
                .flatten(1, 2)
                .unwrap();
            same(&ours, &theirs, &[&xs, &k, &b], 3e-6);
            assert!(depthwise_conv3x3(&xs, (5, 5), &k, &b).is_err(), "a picture of another size");
        });
    }

    #[test]
    fn rearrangements_are_inverse_and_patches_are_in_place() {
        on_each_device(|device| {
            let xs = var(device, &[2, 4, 6, 3], 0);
            let patches = space_to_depth(&xs, 2).unwrap();
            assert_eq!(patches.dims(), [2, 2, 3, 12]);
            assert_eq!(values(&depth_to_space(&patches, 2).unwrap()), values(&xs));
            let first: Vec<f32> = values(&patches)[..12].to_vec();
            let expected: Vec<f32> =
                [0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23].iter().map(|&i| values(&xs)[i]).collect();
            assert_eq!(first, expected);
        });
    }

    #[test]
    fn depthwise_computes_in_half_precision() {
        on_each_device(|device| {
            let (xs, k, b) =
                (var(device, &[2, 30, 24], 0), var(device, &[24, 1, 3, 3], 1), var(device, &[24], 2));
            same_in_half(&[&xs, &k, &b], |xs| depthwise_conv3x3(&xs[0], (5, 6), &xs[1], &xs[2]));
        });
    }
}
