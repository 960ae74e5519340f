//! Slices cut over threads, and the fixed-order reductions that all operations share.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

/// Splits `out` into rows of `width` and calls `body(first_row, rows)` on one block of rows for each thread.
pub fn by_rows(out: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = out.len() / width.max(1);
    let threads = rayon::current_num_threads().min(rows);
    // A few thousand numbers are done before another thread has woken up.
    if threads <= 1 || out.len() < 1 << 14 {
        return body(0, out);
    }
    let block = rows.div_ceil(threads);
    out.par_chunks_mut(block * width).enumerate().for_each(|(i, rows)| body(i * block, rows));
}

/// As [`by_rows`] for two results of `rows` rows that belong together, either of which may have rows of no width: calls
/// `body(rows, first, second)` on one block of rows for each thread.
pub fn by_rows_of_two(
    rows: usize,
    (mut first, mut second): (&mut [f32], &mut [f32]),
    (width, other): (usize, usize),
    body: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) {
    let threads = rayon::current_num_threads().min(rows);
    if threads <= 1 {
        return body(0..rows, first, second);
    }
    let block = rows.div_ceil(threads);
    let mut blocks = Vec::with_capacity(threads);
    for start in (0..rows).step_by(block) {
        let part = start..(start + block).min(rows);
        let (one, rest) = std::mem::take(&mut first).split_at_mut(part.len() * width);
        let (two, others) = std::mem::take(&mut second).split_at_mut(part.len() * other);
        (first, second) = (rest, others);
        blocks.push((part, one, two));
    }
    blocks.into_par_iter().for_each(|(part, one, two)| body(part, one, two));
}

/// Adds up rows: `totals[c] += Σ rows[·][c]`.
#[multiversion(targets = "simd")]
pub fn add_rows(totals: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(totals.len()) {
        totals.iter_mut().zip(row).for_each(|(total, x)| *total += x);
    }
}

/// `rows = others + (rows + bias)`, the bias added to each row.
#[multiversion(targets = "simd")]
pub fn add_bias_and(rows: &mut [f32], bias: &[f32], others: &[f32]) {
    for (row, other) in rows.chunks_exact_mut(bias.len()).zip(others.chunks_exact(bias.len())) {
        for ((x, bias), other) in row.iter_mut().zip(bias).zip(other) {
            *x = other + (*x + bias);
        }
    }
}

/// Lanes of the fixed-order reductions: one AVX-512 register.
pub const LANES: usize = 16;

/// `Σ term(x)` over `xs`, in an order that depends on their number alone.
#[inline(always)]
pub fn sum(xs: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    // Whole lanes as arrays: an index into a slice would be checked number by number, and nothing be vectorised.
    let mut lanes = [0f32; LANES];
    let (whole, rest) = xs.as_chunks::<LANES>();
    for xs in whole {
        lanes.iter_mut().zip(xs).for_each(|(lane, x)| *lane += term(*x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += term(*x));
    total(lanes)
}

/// `Σ term(x, y)` over two slices of one length, in the order of [`sum`].
#[inline(always)]
pub fn sum_of_pairs(xs: &[f32], ys: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((xs, rest), (ys, others)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    for (xs, ys) in xs.iter().zip(ys) {
        for (lane, (x, y)) in lanes.iter_mut().zip(xs.iter().zip(ys)) {
            *lane += term(*x, *y);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest.iter().zip(others)) {
        *lane += term(*x, *y);
    }
    total(lanes)
}

/// The lanes of [`sum`] added up.
#[inline(always)]
pub fn total(lanes: [f32; LANES]) -> f32 {
    reduced(lanes, |a, b| a + b)
}

/// The largest lane.
#[inline(always)]
pub fn largest(lanes: [f32; LANES]) -> f32 {
    reduced(lanes, |a, b| if b > a { b } else { a })
}

/// Halves laid on each other until one number is left.
#[inline(always)]
fn reduced(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Each lane's larger of the two; numbers that are none are passed over.
#[inline(always)]
pub fn larger(lanes: &mut [f32; LANES], values: &[f32; LANES]) {
    for (lane, x) in lanes.iter_mut().zip(values) {
        *lane = if *x > *lane { *x } else { *lane };
    }
}

/// `eˣ` to about one unit in the last place, vectorisable (Cephes' polynomial); 0 where it would be no normal number, since
/// products with such numbers take a hundred times as long, and hidden keys have nothing else.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the sum.
    const MAGIC: f32 = 12_582_912.0;
    const LEAST: f32 = -87.0;
    let vanishes = x < LEAST;
    let x = x.clamp(LEAST, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = r.mul_add(1.987_569_1e-4, 1.398_2e-3);
    let p = r.mul_add(p, 8.333_452e-3);
    let p = r.mul_add(p, 4.166_579_6e-2);
    let p = r.mul_add(p, 1.666_666_6e-1);
    let p = r.mul_add(p, 0.5);
    let y = (p * r).mul_add(r, r) + 1.0;
    let y = y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if vanishes { 0.0 } else { y }
}

/// The strides of one matrix argument of [`gemm`]: elements from row to row and from column to column.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
}

impl Matrix<'_> {
    /// Rows for columns.
    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }
}

/// `out (m, n) = [out +] lhs (m, k) · rhs (k, n)` on this thread; `out`'s rows are `out_row` elements apart.
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    out_row: usize,
    accumulate: bool,
    scale: f32,
    lhs: Matrix,
    rhs: Matrix,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * out_row + n, "gemm: the output is too short");
    if k > 0 {
        let last = |x: Matrix, rows: usize, columns: usize| (rows - 1) * x.row + (columns - 1) * x.column;
        assert!(
            lhs.data.len() > last(lhs, m, k) && rhs.data.len() > last(rhs, k, n),
            "gemm: an argument is too short"
        );
    }
    // SAFETY: every index that gemm forms lies within the slices, by the assertions above; `out` is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_accurate_to_a_few_units_in_the_last_place() {
        let worst = (-8000..8000)
            .map(|i| {
                let x = i as f32 * 0.01;
                let exact = f64::from(x).exp();
                ((f64::from(super::exp(x)) - exact) / exact).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 3e-7, "{worst}");
        assert_eq!([-87.1, -1e30, f32::NEG_INFINITY].map(super::exp), [0.0; 3]);
        assert!(super::exp(-87.0) >= f32::MIN_POSITIVE && super::exp(f32::NAN).is_nan());
    }
}
