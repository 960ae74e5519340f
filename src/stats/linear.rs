//! Eigenvectors of small symmetric matrices.

/// Sweeps after which off-diagonal elements are as small as they get.
const SWEEPS: usize = 60;

/// The eigenvalues of a symmetric matrix, the smallest first, and a unit eigenvector for each, by Jacobi's rotations
/// (Golub and Van Loan, "Matrix Computations", Sec. 8.5).
pub fn symmetric_eigen(matrix: &[Vec<f64>]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let size = matrix.len();
    let mut a = matrix.to_vec();
    // Rows are eigenvectors in the end.
    let mut vectors: Vec<Vec<f64>> =
        (0..size).map(|i| (0..size).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let off: f64 =
            (0..size).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j].powi(2)).sum();
        let all: f64 = a.iter().flatten().map(|x| x * x).sum();
        if off <= 1e-28 * all {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                for k in 0..size {
                    let (x, y) = (a[p][k], a[q][k]);
                    (a[p][k], a[q][k]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (vectors[p][k], vectors[q][k]);
                    (vectors[p][k], vectors[q][k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&i, &j| a[i][i].total_cmp(&a[j][j]));
    (order.iter().map(|&i| a[i][i]).collect(), order.iter().map(|&i| vectors[i].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn vectors_are_orthonormal_and_the_matrix_comes_back() {
        let (values, _) = symmetric_eigen(&[vec![2.0, 1.0], vec![1.0, 2.0]]);
        assert!((values[0] - 1.0).abs() < 1e-12 && (values[1] - 3.0).abs() < 1e-12, "{values:?}");
        let mut draw = stream(Seed::new(1), "eigen test", 0);
        for size in [1, 2, 7, 40] {
            let drawn: Vec<Vec<f64>> =
                (0..size).map(|_| (0..size).map(|_| draw.normal()).collect()).collect();
            let matrix: Vec<Vec<f64>> =
                (0..size).map(|i| (0..size).map(|j| drawn[i][j] + drawn[j][i]).collect()).collect();
            let (values, vectors) = symmetric_eigen(&matrix);
            assert!(values.is_sorted());
            for i in 0..size {
                for j in 0..size {
                    let back: f64 = (0..size).map(|k| values[k] * vectors[k][i] * vectors[k][j]).sum();
                    let dot: f64 = (0..size).map(|k| vectors[i][k] * vectors[j][k]).sum();
                    assert!((back - matrix[i][j]).abs() < 1e-10, "{size}: {back} for {}", matrix[i][j]);
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-10, "{size}: {dot}");
                }
            }
        }
    }
}
