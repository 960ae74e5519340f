//! Attention of some tokens to others: what encoders with an image beside their text are made of.

use candle_core::D;

use super::*;

/// `softmax(Q Kᵀ / √d) V` for each head, over keys from elsewhere; of each sample only the first `lengths` keys, where they
/// are given.
///
/// # Shapes
/// `query` (B, N, C), `key_value` (B, M, 2C), C = `num_heads`·d; result (B, N, C).
///
/// # Errors
/// Where the shapes do not fit, or there is not one length for each sample.
pub fn cross_attention(
    query: &Tensor,
    key_value: &KeyValue,
    num_heads: usize,
    lengths: Option<&[usize]>,
) -> TensorResult {
    let ((batch, queries, width), keys) = (query.dims3()?, key_value.tokens()?);
    let both = key_value.tensor();
    let heads = |xs: &Tensor, tokens: usize| {
        xs.reshape((batch, tokens, num_heads, width / num_heads.max(1)))?.transpose(1, 2)?.contiguous()
    };
    let query = heads(&query.contiguous()?, queries)?; // (B, heads, N, d)
    let key = heads(&both.narrow(2, 0, width)?.contiguous()?, keys)?; // (B, heads, M, d)
    let value = heads(&both.narrow(2, width, width)?.contiguous()?, keys)?;
    let scale = ((width / num_heads.max(1)) as f64).powf(-0.5);
    let mut scores = (query.matmul(&key.t()?)? * scale)?; // (B, heads, N, M)
    if let Some(lengths) = lengths {
        let hidden = |length: &usize| {
            let length = *length;
            (0..keys).map(move |key| if key < length { 0f32 } else { f32::NEG_INFINITY })
        };
        let hidden: Vec<f32> = lengths.iter().flat_map(hidden).collect();
        let hidden = Tensor::from_vec(hidden, (batch, 1, 1, keys), scores.device())?;
        scores = scores.broadcast_add(&hidden.to_dtype(scores.dtype())?)?;
    }
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, queries, width)) // (B, N, C)
}

#[cfg(test)]
mod tests {
    use super::testing::{distance, var};
    use super::*;

    #[test]
    fn it_is_self_attention_where_the_keys_are_the_queries_own() {
        testing::on_each_device(|device| {
            let qkv = var(device, &[2, 5, 24], 1).as_tensor().detach();
            let (query, both) =
                (qkv.narrow(2, 0, 8).unwrap(), qkv.narrow(2, 8, 16).unwrap().contiguous().unwrap());
            let whole = self_attention(&qkv, 2, &Mask::None).unwrap();
            let ours = cross_attention(&query, &KeyValue::new(both.clone()), 2, None).unwrap();
            assert!(distance(&ours, &whole) < 1e-6);
            // Keys that are hidden might as well not be there.
            let short = KeyValue::new(both.narrow(1, 0, 3).unwrap().contiguous().unwrap());
            let hidden = cross_attention(&query, &KeyValue::new(both), 2, Some(&[3, 3])).unwrap();
            assert!(distance(&hidden, &cross_attention(&query, &short, 2, None).unwrap()) < 1e-6);
        });
    }
}
