//! The affine map of the last axis, whose backward pass skips frozen weights.

use candle_core::D;

use super::*;

/// `y = x·Wᵀ + b` over the last axis.
///
/// A weight that is no variable gets no gradient and costs none: with a frozen denoiser that saves a third of a step.
///
/// # Shapes
/// `xs` (…, K), `weight` (N, K), `bias` (N); result (…, N).
///
/// # Errors
/// Where the shapes do not fit.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> TensorResult {
    match bias {
        Some(bias) => op::apply(Linear, &[xs, weight, bias]),
        None => op::apply(Linear, &[xs, weight]),
    }
}

struct Linear;

/// Multiplications below which gemm does not pack its arguments.
const SMALL_PRODUCT: usize = 1 << 16;
/// Up to this many rows and columns gemm cuts the sums of a product at [`WHOLE_SUM`] instead of into even parts.
const SMALL_SIDE: usize = 64;
/// The longest sum that gemm never cuts.
const WHOLE_SUM: usize = 512;

/// The rows that a product with `n` columns and sums of `k` terms has at least.
///
/// gemm treats small products in other ways, and rounds differently: with rows of zeros they become large ones, so that
/// a row's result does not depend on how many others there are.
fn least_rows(n: usize, k: usize) -> usize {
    let packed = SMALL_PRODUCT.div_ceil(n * k).max(4);
    if n <= SMALL_SIDE && k > WHOLE_SUM { packed.max(SMALL_SIDE + 1) } else { packed }
}

/// Rows of a product that are computed at once where the weight needs no packing: their results stay in the cache between
/// the bias that they start from and the product.
const BLOCK: usize = 128;

/// A frozen weight as products on the CPU read it fastest, column by column; its shape and values are the same.
///
/// # Errors
/// Where the tensor library refuses.
pub fn frozen_weight(weight: &Tensor) -> TensorResult {
    if weight.track_op() || !weight.device().is_cpu() {
        return Ok(weight.clone());
    }
    weight.t()?.contiguous()?.t()
}

/// A weight (N, K) as a matrix.
fn matrix<'a>(weight: &'a Argument) -> slice::Matrix<'a> {
    match weight.column {
        Some(column) => slice::Matrix { data: &weight.data, row: 1, column },
        None => slice::Matrix { data: &weight.data, row: weight.dims[1], column: 1 },
    }
}

/// `out (rows, n) = bias + x (rows, k) · (k, n)`, without a bias where it is empty; one block of rows a thread.
fn multiply(out: &mut [f32], (n, k): (usize, usize), x: &[f32], rhs: slice::Matrix, bias: &[f32]) {
    let packed = least_rows(n, k);
    let add = !bias.is_empty();
    slice::by_rows(out, n, |first, out| {
        let rows = out.len() / n;
        let x = &x[first * k..(first + rows) * k];
        if rows < packed {
            let mut padded_x = vec![0f32; packed * k];
            padded_x[..x.len()].copy_from_slice(x);
            let mut padded = if add { bias.repeat(packed) } else { vec![0f32; packed * n] };
            let lhs = slice::Matrix { data: &padded_x, row: k, column: 1 };
            slice::gemm((packed, n, k), &mut padded, n, add, 1.0, lhs, rhs);
            out.copy_from_slice(&padded[..rows * n]);
            return;
        }
        let block = if add && rhs.column == 1 { BLOCK.max(packed) } else { rows };
        // What is left over goes with the last whole block.
        let mut from = 0;
        while from < rows {
            let count = if rows - from < 2 * block { rows - from } else { block };
            let out = &mut out[from * n..(from + count) * n];
            if add {
                out.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
            }
            let lhs = slice::Matrix { data: &x[from * k..], row: k, column: 1 };
            slice::gemm((count, n, k), out, n, add, 1.0, lhs, rhs);
            from += count;
        }
    });
}

impl Fused for Linear {
    const NAME: &'static str = "linear";
    const OVERWRITES: bool = true;
    const BY_COLUMN: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [xs, weight, bias]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        match (xs, weight) {
            ([rows @ .., k], [n, columns]) if k == columns && (bias == [0] || bias == [*n]) => {
                Ok([rows, &[*n]].concat().into())
            }
            _ => candle_core::bail!("linear: input {xs:?}, weight {weight:?}, bias {bias:?}"),
        }
    }

    fn cpu(&self, [xs, weight, bias]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (n, k) = (weight.dims[0], weight.dims[1]);
        multiply(out, (n, k), &xs.data, matrix(&weight).transposed(), &bias.data);
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (k, n) = (call.width(0), call.dims(1)[0]);
        call.matmul((call.count() / n, n, k), true)?;
        if !call.has(2) {
            return Ok(());
        }
        let count = call.count();
        let parameters = [Output, Input(2), U32(n as u32), U64(count as u64)];
        call.launch("add_bias", cuda::elements(count), &parameters)
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        let (xs, weight) = (arguments[0], arguments[1]);
        let ys = rows(xs)?.matmul(&weight.t()?)?;
        let shape = [&xs.dims()[..xs.rank() - 1], &weight.dims()[..1]].concat();
        let ys = ys.reshape(shape)?;
        match op::present(arguments, 2) {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }

    fn gradients(
        &self,
        [xs, weight, bias]: [&Tensor; ARGUMENTS],
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<Gradients> {
        Ok([
            wanted(xs, || op::backward(LinearInput, &[grad, weight]))?,
            wanted(weight, || op::backward(LinearWeight, &[grad, xs]))?,
            wanted(bias, || op::backward(ColumnSums, &[grad]))?,
        ])
    }
}

/// All axes but the last as one.
fn rows(xs: &Tensor) -> TensorResult {
    xs.reshape(((), xs.dim(D::Minus1)?))
}

/// (dy, weight) to dx: the only product of the way back through a frozen map.
struct LinearInput;

impl Fused for LinearInput {
    const NAME: &'static str = "linear-input";
    const BY_COLUMN: bool = true;
    const OVERWRITES: bool = true;
    const KERNEL: bool = true;

    fn shape(&self, [dy, weight, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok([&dy[..dy.len() - 1], &weight[1..]].concat().into())
    }

    fn cpu(&self, [dy, weight, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        let (n, k) = (weight.dims[0], weight.dims[1]);
        multiply(out, (k, n), &dy.data, matrix(&weight), &[]);
    }

    #[cfg(feature = "cuda")]
    fn cuda<T: cuda::Element>(&self, call: &mut cuda::Call<T>) -> TensorResult<()> {
        let (n, k) = (call.width(0), call.width(1));
        call.matmul((call.count() / k, k, n), false)
    }
}

/// (dy, x) to the weight's gradient.
struct LinearWeight;

impl Fused for LinearWeight {
    const NAME: &'static str = "linear-weight";
    const OVERWRITES: bool = true;

    fn shape(&self, [dy, xs, _]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok((dy[dy.len() - 1], xs[xs.len() - 1]).into())
    }

    fn cpu(&self, [dy, xs, _]: [Argument; ARGUMENTS], out: &mut [f32]) {
        counting::weight_gradient();
        let (n, k) = (dy.dims[dy.dims.len() - 1], xs.dims[xs.dims.len() - 1]);
        let rows = xs.data.len() / k;
        let rhs = slice::Matrix { data: &xs.data, row: k, column: 1 };
        slice::by_rows(out, k, |first, dw| {
            let lhs = slice::Matrix { data: &dy.data[first..], row: 1, column: n };
            slice::gemm((dw.len() / k, k, rows), dw, k, false, 1.0, lhs, rhs);
        });
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        counting::weight_gradient();
        rows(arguments[0])?.t()?.matmul(&rows(arguments[1])?)
    }
}

/// The sums of the last axis's columns: a bias's gradient.
pub(super) struct ColumnSums;

impl Fused for ColumnSums {
    const NAME: &'static str = "column-sums";

    fn shape(&self, [dy, ..]: [&[usize]; ARGUMENTS]) -> TensorResult<Shape> {
        Ok(dy[dy.len() - 1].into())
    }

    fn cpu(&self, [dy, ..]: [Argument; ARGUMENTS], out: &mut [f32]) {
        slice::add_rows(out, &dy.data);
    }

    fn compose(&self, arguments: &[&Tensor]) -> TensorResult {
        rows(arguments[0])?.sum(0)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn equals_candles_own_in_value_and_gradient() {
        on_each_device(|device| {
            let (xs, w, b) = (var(device, &[3, 7, 24], 0), var(device, &[40, 24], 1), var(device, &[40], 2));
            let ours = linear(&xs, &w, Some(&b)).unwrap();
            let theirs = xs
                .flatten_to(1)
                .unwrap()
                .matmul(&w.t().unwrap())
                .unwrap()
                .reshape((3, 7, 40))
                .unwrap()
                .broadcast_add(&b);
            same(&ours, &theirs.unwrap(), &[&xs, &w, &b], 2e-6);
        });
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_many_and_however_the_weight_lies() {
        for (n, k) in [
            (128, 128),
            (512, 128),
            (128, 512),
            (640, 192),
            (7, 5),
            (160, 24),
            (64, 64),
            (96, 64),
            (32, 40),
            (192, 48),
            (48, 192),
            (48, 40),
            (24, 96),
            (33, 47),
            (48, 864),
            (64, 1025),
            (5, 2048),
        ] {
            let (many, w, b) =
                (var(&Device::Cpu, &[700, k], 3), var(&Device::Cpu, &[n, k], 4), var(&Device::Cpu, &[n], 5));
            let all = linear(&many, &w, Some(&b)).unwrap();
            let by_column = frozen_weight(&w.detach()).unwrap();
            assert!(!by_column.is_contiguous());
            for rows in [1, 2, 3, 4, 5, 7, 12, 16, 17, 64, 127, 255, 256, 385, 697] {
                let (some, expected) =
                    (many.narrow(0, 3, rows).unwrap(), values(&all.narrow(0, 3, rows).unwrap()));
                for w in [w.as_tensor(), &by_column] {
                    let same = values(&linear(&some, w, Some(&b)).unwrap()) == expected;
                    assert!(same, "{rows} rows of ({n}, {k}), by column: {}", !w.is_contiguous());
                }
            }
        }
    }

    #[test]
    fn a_weight_by_column_gives_the_same_gradients() {
        let (xs, w, b) =
            (var(&Device::Cpu, &[3, 7, 24], 0), var(&Device::Cpu, &[40, 24], 1), var(&Device::Cpu, &[40], 2));
        for (skip, count) in [(0, 40), (8, 32)] {
            let part = |w: &Tensor| w.narrow(0, skip, count).unwrap();
            let by_column = part(&frozen_weight(&w.detach()).unwrap());
            let ours = linear(&xs, &by_column, Some(&part(&b))).unwrap();
            same(
                &ours,
                &linear(&double(&xs), &double(&part(&w)), Some(&double(&part(&b))))
                    .unwrap()
                    .to_dtype(candle_core::DType::F32)
                    .unwrap(),
                &[&xs],
                2e-6,
            );
            same_in_half(&[&xs], |xs| linear(&xs[0], &by_column.to_dtype(xs[0].dtype())?, None));
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        on_each_device(|device| {
            let (xs, w) = (var(device, &[4, 8], 0), var(device, &[6, 8], 1).detach());
            let before = super::super::counting::weight_gradients();
            let grads = linear(&xs, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&xs).is_some() && grads.get(&w).is_none());
            assert_eq!(super::super::counting::weight_gradients(), before);
        });
    }

    #[test]
    fn computes_in_half_precision() {
        on_each_device(|device| {
            let (xs, w, b) = (var(device, &[3, 7, 24], 0), var(device, &[40, 24], 1), var(device, &[40], 2));
            same_in_half(&[&xs, &w, &b], |xs| linear(&xs[0], &xs[1], Some(&xs[2])));
        });
    }
}
