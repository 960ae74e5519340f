//! Bilinear enlargement between pictures' corner pixels.

use candle_core::DType;

use super::*;

/// Pictures in another size, the corner pixels of both lying on each other (torch's `align_corners=True`), each pixel in
/// between mixed of its four neighbours. Computed in single precision, in torch's order.
///
/// # Shapes
/// (B, H, W, C) to (B, height, width, C).
///
/// # Errors
/// Where a side is zero.
pub fn resize_corners(xs: &Tensor, (height, width): (usize, usize)) -> TensorResult {
    let (_, from_height, from_width, _) = xs.dims4()?;
    if (from_height, from_width) == (height, width) {
        return Ok(xs.clone());
    }
    if [from_height, from_width, height, width].contains(&0) {
        candle_core::bail!("resize: from {from_height}×{from_width} to {height}×{width}");
    }
    let wide = xs.to_dtype(DType::F32)?.contiguous()?;
    let along_rows = mix(&wide, 2, from_width, width)?;
    mix(&along_rows, 1, from_height, height)?.to_dtype(xs.dtype())
}

/// Each new position of an axis as a mixture of two old ones.
fn mix(xs: &Tensor, dim: usize, from: usize, to: usize) -> TensorResult {
    if from == to {
        return Ok(xs.clone());
    }
    let scale = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    let (mut low, mut high, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..to {
        let at = scale * i as f32;
        let first = (at as usize).min(from - 1);
        low.push(first as u32);
        high.push((first + 1).min(from - 1) as u32);
        share.push((at - first as f32).clamp(0.0, 1.0));
    }
    let device = xs.device();
    let shares = |shares: Vec<f32>| {
        let mut shape = [1; 4];
        shape[dim] = to;
        Tensor::from_vec(shares, &shape, device)
    };
    let pick = |index: Vec<u32>| xs.index_select(&Tensor::new(index, device)?, dim);
    let rest = share.iter().map(|share| 1.0 - share).collect();
    pick(low)?.broadcast_mul(&shares(rest)?)? + pick(high)?.broadcast_mul(&shares(share)?)?
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn corners_stay_and_a_plane_stays_a_plane() {
        on_each_device(|device| {
            let plane = |h: usize, w: usize| {
                let at = |i: usize| i as f32 / (h - 1) as f32;
                let values = (0..h * w).map(|i| 2.0 * at(i / w) - (i % w) as f32 / (w - 1) as f32);
                Tensor::from_vec(values.collect::<Vec<_>>(), (1, h, w, 1), device).unwrap()
            };
            let (ours, expected) = (resize_corners(&plane(3, 4), (7, 5)).unwrap(), plane(7, 5));
            for (a, b) in values(&ours).iter().zip(values(&expected)) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
            let shrunk = values(&resize_corners(&plane(7, 5), (2, 1)).unwrap());
            assert_eq!(shrunk, [0.0, 2.0], "the first column's ends");
            assert!(resize_corners(&plane(3, 4), (0, 2)).is_err());
        });
    }
}
