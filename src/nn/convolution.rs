//! Dense convolutions and transposed convolutions over channels-last pictures, for networks that are used frozen.
//!
//! Each is a gathering of patches and a linear map, a band of rows at a time, so that what is gathered stays small
//! whatever the picture's size. Gradients reach the pictures through the tensor library's own operations, not the weights,
//! which are laid out anew when a convolution is built.

use super::*;

/// The most numbers that are gathered at once.
const GATHERED: usize = 1 << 22;

/// A k×k convolution with zero padding.
#[derive(Debug, Clone)]
pub struct Convolution {
    /// (O, k·k·I), the patch's rows outermost.
    weight: Tensor,
    bias: Option<Tensor>,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Convolution {
    /// Lays out a weight (O, I, k, k) as torch stores it, and a bias (O).
    ///
    /// # Errors
    /// Where the kernel is not square.
    pub fn new(weight: &Tensor, bias: Option<Tensor>, stride: usize, padding: usize) -> TensorResult<Self> {
        let (outputs, inputs, kernel, width) = weight.dims4()?;
        if kernel != width || stride == 0 {
            candle_core::bail!("convolution: kernel {kernel}×{width}, stride {stride}");
        }
        let weight =
            weight.permute((0, 2, 3, 1))?.contiguous()?.reshape((outputs, kernel * kernel * inputs))?;
        Ok(Self { weight: frozen_weight(&weight)?, bias, kernel, stride, padding })
    }

    /// Applies it.
    ///
    /// # Shapes
    /// (B, H, W, I) to (B, H', W', O) with `H' = ⌊(H + 2·padding − k) / stride⌋ + 1`.
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> TensorResult {
        let (kernel, stride, padding) = (self.kernel, self.stride, self.padding);
        let map = |xs: &Tensor| linear(xs, &self.weight, self.bias.as_ref());
        if (kernel, stride, padding) == (1, 1, 0) {
            return map(xs);
        }
        let xs = zero_padded(xs, padding)?;
        let (_, height, width, _) = xs.dims4()?;
        if height < kernel || width < kernel {
            candle_core::bail!(
                "convolution: a padded picture of {height}×{width} under a kernel of {kernel}×{kernel}"
            );
        }
        if kernel == stride {
            // Rows and columns that make no whole patch are left out.
            let xs = xs.narrow(1, 0, height / stride * stride)?.narrow(2, 0, width / stride * stride)?;
            return map(&space_to_depth(&xs, stride)?);
        }
        let size = ((height - kernel) / stride + 1, (width - kernel) / stride + 1);
        in_bands(&xs, size, kernel, stride, |patches| map(patches))
    }
}

/// A k×k transposed convolution that enlarges pictures `stride` times exactly: `k − stride = 2·padding`.
#[derive(Debug, Clone)]
pub struct TransposedConvolution {
    /// For each place within an output patch, rows outermost: (O, m·m·I), m = k / stride.
    phases: Vec<Tensor>,
    bias: Tensor,
    stride: usize,
    padding: usize,
    /// Input pixels along an axis that reach one output pixel: m.
    reach: usize,
}

impl TransposedConvolution {
    /// Lays out a weight (I, O, k, k) as torch stores it, and a bias (O).
    ///
    /// # Errors
    /// Where the kernel is not square, or the picture would not grow `stride` times.
    pub fn new(weight: &Tensor, bias: Tensor, stride: usize, padding: usize) -> TensorResult<Self> {
        let (inputs, outputs, kernel, width) = weight.dims4()?;
        if kernel != width || stride == 0 || kernel % stride != 0 || kernel != stride + 2 * padding {
            candle_core::bail!(
                "transposed convolution: kernel {kernel}×{width}, stride {stride}, padding {padding}"
            );
        }
        let reach = kernel / stride;
        // The kernel's rows (or columns) that meet the input at a place of the output, from the first input pixel on.
        let taps = |place: usize| {
            let rows = (0..reach).rev().map(|t| ((place + padding) % stride + stride * t) as u32);
            Tensor::new(rows.collect::<Vec<_>>(), weight.device())
        };
        let weight = weight.permute((1, 2, 3, 0))?.contiguous()?; // (O, k, k, I)
        let places = (0..stride * stride).map(|place| (place / stride, place % stride));
        let phases = places
            .map(|(y, x)| {
                let phase = weight.index_select(&taps(y)?, 1)?.index_select(&taps(x)?, 2)?;
                frozen_weight(&phase.reshape((outputs, reach * reach * inputs))?)
            })
            .collect::<TensorResult<_>>()?;
        Ok(Self { phases, bias, stride, padding, reach })
    }

    /// Applies it.
    ///
    /// # Shapes
    /// (B, H, W, I) to (B, H·stride, W·stride, O).
    ///
    /// # Errors
    /// Where the shapes do not fit.
    pub fn forward(&self, xs: &Tensor) -> TensorResult {
        let (_, height, width, _) = xs.dims4()?;
        let xs = zero_padded(xs, self.reach - 1)?;
        let first = |place: usize| (place + self.padding) / self.stride;
        let window = self.reach - 1;
        let phases = self.phases.iter().enumerate().map(|(place, weight)| {
            let (y, x) = (first(place / self.stride), first(place % self.stride));
            let part = xs.narrow(1, y, height + window)?.narrow(2, x, width + window)?;
            in_bands(&part, (height, width), self.reach, 1, |patches| {
                linear(patches, weight, Some(&self.bias))
            })
        });
        let phases = Tensor::cat(&phases.collect::<TensorResult<Vec<_>>>()?, 3)?; // (B, H, W, s·s·O)
        depth_to_space(&phases, self.stride)
    }
}

fn zero_padded(xs: &Tensor, padding: usize) -> TensorResult {
    if padding == 0 {
        return Ok(xs.clone());
    }
    xs.pad_with_zeros(1, padding, padding)?.pad_with_zeros(2, padding, padding)
}

/// Gathers the patches of one sample's band of output rows after the other, (1, rows, W', k·k·C), and joins what `map`
/// makes of them.
fn in_bands(
    xs: &Tensor,
    (height, width): (usize, usize),
    kernel: usize,
    stride: usize,
    map: impl Fn(&Tensor) -> TensorResult,
) -> TensorResult {
    let (batch, _, _, channels) = xs.dims4()?;
    let rows = (GATHERED / (width * kernel * kernel * channels).max(1)).clamp(1, height);
    let mut samples = Vec::with_capacity(batch);
    for sample in 0..batch {
        let sample = xs.narrow(0, sample, 1)?;
        let mut bands = Vec::new();
        for first in (0..height).step_by(rows) {
            let patches = Patches { kernel, stride, first, rows: rows.min(height - first), width };
            // Where a gradient is to come back, the tensor library's own operations bring it.
            let patches = if sample.track_op() {
                patches.compose(&[&sample])?
            } else {
                op::apply(patches, &[&sample])?
            };
            bands.push(map(&patches)?);
        }
        samples.push(Tensor::cat(&bands, 1)?);
    }
    Tensor::cat(&samples, 0)
}

/// The patches of some rows of a convolution's output: (1, H, W, C) to (1, rows, W', k·k·C), a patch's rows outermost.
struct Patches {
    kernel: usize,
    stride: usize,
    /// The first row of the output, and how many.
    first: usize,
    rows: usize,
    /// Of the output.
    width: usize,
}

impl Fused for Patches {
    const NAME: &'static str = "patches";
    const OVERWRITES: bool = true;

    fn shape(&self, [xs, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match *xs {
            [1, _, _, channels] => {
                Ok((1, self.rows, self.width, self.kernel * self.kernel * channels).into())
            }
            _ => candle_core::bail!("patches: of one picture (1, H, W, C), got {xs:?}"),
        }
    }

    fn cpu(&self, [xs, ..]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (across, channels) = (xs.dims[2], xs.dims[3]);
        // Channels last: a row of a patch is one piece of a row of the picture.
        let piece = self.kernel * channels;
        let patches = out.chunks_exact_mut(self.kernel * piece).enumerate();
        for (place, patch) in patches {
            let (y, x) = (self.first + place / self.width, place % self.width);
            for (dy, row) in patch.chunks_exact_mut(piece).enumerate() {
                let start = ((y * self.stride + dy) * across + x * self.stride) * channels;
                row.copy_from_slice(&xs.data[start..start + piece]);
            }
        }
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, stride) = (arguments[0], self.stride);
        // Every `stride`-th of an axis, from each tap's first.
        let every = |xs: &Tensor, dim: usize, first: usize, count: usize| -> TensorResult {
            if stride == 1 {
                return xs.narrow(dim, first, count);
            }
            let index: Vec<u32> = (0..count).map(|i| (first + stride * i) as u32).collect();
            xs.contiguous()?.index_select(&Tensor::new(index, xs.device())?, dim)
        };
        let mut taps = Vec::with_capacity(self.kernel * self.kernel);
        for dy in 0..self.kernel {
            let lines = every(xs, 1, self.first * stride + dy, self.rows)?;
            for dx in 0..self.kernel {
                taps.push(every(&lines, 2, dx, self.width)?);
            }
        }
        Tensor::cat(&taps, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn channels_first(xs: &Tensor) -> Tensor {
        xs.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
    }

    fn near(ours: &Tensor, theirs: &Tensor) {
        assert_eq!(ours.dims(), theirs.dims());
        for (a, b) in values(ours).iter().zip(values(theirs)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn convolutions_equal_candles() {
        on_each_device(|device| {
            let xs = var(device, &[2, 7, 9, 6], 0);
            for (kernel, stride, padding) in
                [(1, 1, 0), (2, 2, 0), (3, 1, 1), (3, 2, 1), (4, 2, 1), (3, 2, 0)]
            {
                let (w, b) = (var(device, &[5, 6, kernel, kernel], 1), var(device, &[5], 2));
                let ours =
                    Convolution::new(&w, Some(b.as_tensor().clone()), stride, padding).unwrap().forward(&xs);
                let theirs = channels_first(&xs).conv2d(&w, padding, stride, 1, 1).unwrap();
                let theirs = theirs.permute((0, 2, 3, 1)).unwrap().broadcast_add(&b).unwrap();
                near(&ours.unwrap(), &theirs);
            }
        });
    }

    #[test]
    fn transposed_convolutions_equal_candles() {
        on_each_device(|device| {
            let xs = var(device, &[2, 4, 3, 6], 0);
            for (kernel, stride, padding) in [(2, 2, 0), (4, 2, 1), (3, 1, 1), (4, 4, 0)] {
                let (w, b) = (var(device, &[6, 5, kernel, kernel], 1), var(device, &[5], 2));
                let ours = TransposedConvolution::new(&w, b.as_tensor().clone(), stride, padding).unwrap();
                let theirs = channels_first(&xs).conv_transpose2d(&w, padding, 0, stride, 1).unwrap();
                let theirs = theirs.permute((0, 2, 3, 1)).unwrap().broadcast_add(&b).unwrap();
                near(&ours.forward(&xs).unwrap(), &theirs);
            }
            let w = var(device, &[6, 5, 3, 3], 1);
            let refused = TransposedConvolution::new(&w, var(device, &[5], 2).as_tensor().clone(), 2, 1);
            assert!(refused.is_err(), "a picture that would grow by another factor");
        });
    }

    #[test]
    fn bands_do_not_show() {
        let xs = var(&candle_core::Device::Cpu, &[1, 9, 5, 4], 0);
        let same = |patches: &Tensor| Ok(patches.clone());
        let whole = in_bands(&xs, (7, 3), 3, 1, same).unwrap();
        let rows: Vec<Tensor> =
            (0..7).map(|row| in_bands(&xs.narrow(1, row, 3).unwrap(), (1, 3), 3, 1, same).unwrap()).collect();
        assert_eq!(values(&whole), values(&Tensor::cat(&rows, 1).unwrap()));
    }
}
