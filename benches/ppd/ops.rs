//! Each operation of Stage C forward and backward, at the shapes of the step's measurement: weights are frozen, the
//! gradient goes to the input (and to the user's keys and values).

use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use ppd::nn::{self, KeyValue};
use serde_json::{Value, json};

use crate::measured::{Measured, circumstances, time};

/// Images, side of the picture, channels of the deeper level.
const BATCH: usize = 32;
const SIDE: usize = 16;
const WIDTH: usize = 256;
const HEADS: usize = 4;
/// Text tokens and user tokens.
const TEXT: usize = 85;
const USER: usize = 8;

/// The same numbers in [−1, 1) as the twin's: a multiplicative hash of the index.
pub fn numbers(shape: &[usize], salt: u32) -> Result<Tensor> {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count)
        .map(|i| {
            let hash = (i ^ salt.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761);
            ((hash >> 8) as f32) / 8_388_608.0 - 1.0
        })
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// In double precision: millions of terms in single precision would differ by how they are summed.
pub fn mean_square(xs: &Tensor) -> Result<f64> {
    let values = xs.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / values.len() as f64)
}

/// The sum of squares, whose gradient goes back through an operation.
fn sum_of_squares(xs: &Tensor, zeros: &Tensor) -> Result<Tensor> {
    let each = (xs.elem_count() / xs.dim(0)?) as f64;
    Ok((nn::squared_error(xs, zeros)?.sum_all()? * each)?)
}

/// Forward and backward of `op` on variables of the given shapes; the gradient of the sum of squares goes back.
fn forward_and_backward(
    reps: usize,
    shape: Value,
    variables: &[&[usize]],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Measured> {
    let vars = (1..)
        .zip(variables)
        .map(|(salt, shape)| Ok(Var::from_tensor(&numbers(shape, salt)?)?))
        .collect::<Result<Vec<_>>>()?;
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let zeros = op(&inputs)?.zeros_like()?;
    let (seconds, check) = time(reps, || {
        let out = op(&inputs)?;
        let grads = sum_of_squares(&out, &zeros)?.backward()?;
        let gradient = grads.get(&inputs[0]).ok_or_else(|| anyhow::anyhow!("the input got no gradient"))?;
        Ok((out, gradient.clone()))
    })?;
    let check = vec![mean_square(&check.0)?, mean_square(&check.1)?];
    let mut shape = shape;
    circumstances(&mut shape, &inputs[0], rayon::current_num_threads());
    Ok(Measured { shape, seconds, check })
}

/// A linear map of all positions, as into the MLP of a residual block.
pub fn linear(reps: usize) -> Result<Measured> {
    let (weight, bias) = (numbers(&[4 * WIDTH, WIDTH], 11)?, numbers(&[4 * WIDTH], 12)?);
    let rows = [BATCH, SIDE * SIDE, WIDTH];
    forward_and_backward(reps, json!({"input": rows, "weight": weight.dims()}), &[&rows], |xs| {
        Ok(nn::linear(&xs[0], &weight, Some(&bias))?)
    })
}

/// A 1×1 convolution, which is a linear map where channels come last.
pub fn pointwise_conv(reps: usize) -> Result<Measured> {
    let (weight, bias) = (numbers(&[WIDTH, WIDTH / 2], 11)?, numbers(&[WIDTH], 12)?);
    let rows = [BATCH, SIDE, SIDE, WIDTH / 2];
    forward_and_backward(reps, json!({"input": rows, "weight": weight.dims()}), &[&rows], |xs| {
        Ok(nn::linear(&xs[0], &weight, Some(&bias))?)
    })
}

/// The depthwise 3×3 convolution of a residual block.
pub fn depthwise_conv(reps: usize) -> Result<Measured> {
    let (weight, bias) = (numbers(&[WIDTH, 1, 3, 3], 11)?, numbers(&[WIDTH], 12)?);
    let rows = [BATCH, SIDE, SIDE, WIDTH];
    forward_and_backward(reps, json!({"input": rows, "weight": weight.dims()}), &[&rows], |xs| {
        Ok(nn::depthwise_conv3x3(&xs[0].flatten(1, 2)?, (SIDE, SIDE), &weight, &bias)?)
    })
}

/// Layer normalisation over channels.
pub fn layer_norm(reps: usize) -> Result<Measured> {
    let rows = [BATCH, SIDE, SIDE, WIDTH];
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| Ok(nn::layer_norm(&xs[0], None, 1e-6)?))
}

/// Global response normalisation within the MLP.
pub fn grn(reps: usize) -> Result<Measured> {
    let (gamma, beta) = (numbers(&[4 * WIDTH], 11)?, numbers(&[4 * WIDTH], 12)?);
    let rows = [BATCH, SIDE * SIDE, 4 * WIDTH];
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| Ok(nn::grn(&xs[0], &gamma, &beta)?))
}

/// The MLP's non-linearity.
pub fn gelu(reps: usize) -> Result<Measured> {
    let rows = [BATCH, SIDE * SIDE, 4 * WIDTH];
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| Ok(nn::gelu_erf(&xs[0])?))
}

/// Both as the one operation that a residual block runs.
pub fn gelu_grn(reps: usize) -> Result<Measured> {
    let (gamma, beta) = (numbers(&[4 * WIDTH], 11)?, numbers(&[4 * WIDTH], 12)?);
    let rows = [BATCH, SIDE * SIDE, 4 * WIDTH];
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| {
        Ok(nn::gelu_grn(&xs[0], &gamma, &beta)?)
    })
}

/// The timestep's scale and shift.
pub fn modulate(reps: usize) -> Result<Measured> {
    let (scale, shift) = (numbers(&[BATCH, WIDTH], 11)?, numbers(&[BATCH, WIDTH], 12)?);
    let rows = [BATCH, SIDE * SIDE, WIDTH];
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| {
        Ok(nn::modulate(&xs[0], &scale, &shift)?)
    })
}

/// Attention of all positions to themselves and the text, and beside it to the user.
pub fn attention(reps: usize) -> Result<Measured> {
    let (rows, text) = ([BATCH, SIDE * SIDE, 3 * WIDTH], [BATCH, TEXT, 2 * WIDTH]);
    let user = [BATCH, USER, 2 * WIDTH];
    let shape = json!({"qkv": rows, "text": text, "user": user, "heads": HEADS});
    let text = KeyValue::new(numbers(&text, 11)?);
    forward_and_backward(reps, shape, &[&rows, &user], |xs| {
        let user = KeyValue::new(xs[1].clone());
        Ok(nn::decoupled_attention(&xs[0], &text, Some(&user), HEADS)?)
    })
}

/// Each sample's mean squared error.
pub fn squared_error(reps: usize) -> Result<Measured> {
    let rows = [BATCH, 16, 4 * SIDE, 4 * SIDE];
    let target = numbers(&rows, 11)?;
    forward_and_backward(reps, json!({"input": rows}), &[&rows], |xs| Ok(nn::squared_error(&xs[0], &target)?))
}
