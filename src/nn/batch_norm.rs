//! Batch normalisation by stored statistics, of networks that are used frozen.

use candle_core::DType;
use candle_nn::VarBuilder;

use super::*;

/// `y = scale·x + shift` for each channel, made of a checkpoint's running mean and variance and, where it has them, its
/// weight and bias.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    scale: Tensor,
    shift: Tensor,
}

impl BatchNorm {
    /// Reads the statistics of `channels` channels; with `affine` also the weight and bias that follow them.
    ///
    /// # Errors
    /// Where a tensor is missing or misshapen.
    pub fn new(channels: usize, affine: bool, eps: f64, vb: VarBuilder) -> TensorResult<Self> {
        // Tensors come in the model's precision; the statistics are combined in the widest.
        let read = |name: &str| vb.get(channels, name)?.to_dtype(DType::F64);
        let mut scale = (read("running_var")? + eps)?.sqrt()?.recip()?;
        if affine {
            scale = (scale * read("weight")?)?;
        }
        let mut shift = (read("running_mean")?.neg()? * &scale)?;
        if affine {
            shift = (shift + read("bias")?)?;
        }
        Ok(Self { scale: scale.to_dtype(vb.dtype())?, shift: shift.to_dtype(vb.dtype())? })
    }

    /// Normalises the last axis.
    ///
    /// # Shapes
    /// (…, C) to the same.
    ///
    /// # Errors
    /// Where the channels do not fit.
    pub fn forward(&self, xs: &Tensor) -> TensorResult {
        xs.broadcast_mul(&self.scale)?.broadcast_add(&self.shift)
    }

    /// A convolution's weight (O, …), without bias, and this normalisation of its result as one map.
    ///
    /// # Errors
    /// Where the channels do not fit.
    pub fn after(&self, weight: &Tensor) -> TensorResult<Folded> {
        let mut shape = vec![1; weight.rank()];
        shape[0] = weight.dim(0)?;
        let scale = self.scale.reshape(shape)?;
        Ok(Folded { weight: weight.broadcast_mul(&scale)?, bias: self.shift.clone() })
    }
}

/// A convolution's weight and bias with the normalisation that follows them inside.
#[derive(Debug, Clone)]
pub struct Folded {
    /// As torch stores it.
    pub weight: Tensor,
    /// (O).
    pub bias: Tensor,
}

impl Folded {
    /// As a dense convolution.
    ///
    /// # Errors
    /// Where the kernel is not square.
    pub fn convolution(self, stride: usize, padding: usize) -> TensorResult<Convolution> {
        Convolution::new(&self.weight, Some(self.bias), stride, padding)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn statistics_and_affine_part_act_alike_before_and_behind_a_convolution() {
        let device = Device::Cpu;
        let tensor = |values: &[f32]| Tensor::new(values, &device).unwrap();
        let tensors = HashMap::from([
            ("running_mean".to_owned(), tensor(&[1.0, -2.0])),
            ("running_var".to_owned(), tensor(&[3.0, 0.25])),
            ("weight".to_owned(), tensor(&[2.0, 1.0])),
            ("bias".to_owned(), tensor(&[0.5, 0.0])),
        ]);
        let norm = |affine| {
            let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &device);
            BatchNorm::new(2, affine, 1.0, vb).unwrap()
        };
        let xs = tensor(&[2.0, -1.0]).reshape((1, 1, 1, 2)).unwrap();
        assert_eq!(values(&norm(true).forward(&xs).unwrap())[0], 1.5, "2·(2 − 1)/√(3 + 1) + 0.5");
        assert_eq!(values(&norm(false).forward(&xs).unwrap())[0], 0.5);

        let (weight, xs) = (var(&device, &[2, 3, 3, 3], 0), var(&device, &[2, 4, 5, 3], 1));
        let plain = Convolution::new(&weight, None, 1, 1).unwrap().forward(&xs).unwrap();
        let folded = norm(true).after(&weight).unwrap().convolution(1, 1).unwrap().forward(&xs).unwrap();
        assert!(distance(&folded, &norm(true).forward(&plain).unwrap()) < 1e-6);
    }
}
