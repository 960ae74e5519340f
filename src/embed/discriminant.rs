//! Linear discriminants of embeddings: the directions in which users differ most, beside how much groups of one user do.
//!
//! Most of what varies between embeddings is which pictures were shown. Who chose stands in a few directions, and groups of the
//! users that are trained on say which.
//!
//! # Equation
//! With the covariance `W` of embeddings around their users' means and `B` of those means, the discriminants are the
//! generalised eigenvectors `B v = λ W v` of the largest λ, scaled to `vᵀ W v = 1` (Fisher 1936). `W` is mixed with a share of
//! its own mean variance, as there are few groups beside the width.

use crate::stats::linear::symmetric_eigen;

/// The share of the mean variance that is added to the within-user covariance.
const RIDGE: f64 = 0.1;

/// A linear map to discriminants.
#[derive(Debug, Clone, PartialEq)]
pub struct Discriminants {
    /// One row for each.
    rows: Vec<Vec<f64>>,
}

impl Discriminants {
    /// The first `count` of `rows`, which belong to `owners`; fewer where the width is smaller. Rows shall be centred.
    pub fn of(rows: &[Vec<f64>], owners: &[i64], count: usize) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let mut within = vec![vec![0.0; width]; width];
        let mut between = within.clone();
        let mut first = 0;
        let mut users = 0usize;
        for own in owners.chunk_by(|a, b| a == b) {
            let group = &rows[first..first + own.len()];
            first += own.len();
            users += 1;
            let mean: Vec<f64> =
                (0..width).map(|k| group.iter().map(|row| row[k]).sum::<f64>() / own.len() as f64).collect();
            add(&mut between, &mean);
            for row in group {
                let apart: Vec<f64> = row.iter().zip(&mean).map(|(x, mean)| x - mean).collect();
                add(&mut within, &apart);
            }
        }
        let (freedom, users) = (rows.len().saturating_sub(users).max(1) as f64, users.max(1) as f64);
        let trace: f64 = (0..width).map(|k| within[k][k] / freedom).sum();
        for (k, row) in within.iter_mut().enumerate() {
            row.iter_mut().for_each(|value| *value /= freedom);
            row[k] += RIDGE * trace / width.max(1) as f64 + f64::MIN_POSITIVE;
        }
        between.iter_mut().flatten().for_each(|value| *value /= users);
        // W^(-1/2), then the eigenvectors of W^(-1/2) B W^(-1/2).
        let (values, vectors) = symmetric_eigen(&within);
        let root: Vec<Vec<f64>> = (0..width)
            .map(|i| {
                (0..width)
                    .map(|j| {
                        (0..width).map(|k| vectors[k][i] * vectors[k][j] / values[k].max(1e-12).sqrt()).sum()
                    })
                    .collect()
            })
            .collect();
        let (_, vectors) = symmetric_eigen(&product(&product(&root, &between), &root));
        let rows =
            vectors.iter().rev().take(count).map(|vector| {
                (0..width).map(|i| root[i].iter().zip(vector).map(|(a, b)| a * b).sum()).collect()
            });
        Self { rows: rows.collect() }
    }

    /// A row's discriminants.
    pub fn apply(&self, row: &[f64]) -> Vec<f64> {
        self.rows.iter().map(|direction| direction.iter().zip(row).map(|(a, b)| a * b).sum()).collect()
    }
}

fn add(sum: &mut [Vec<f64>], vector: &[f64]) {
    for (row, x) in sum.iter_mut().zip(vector) {
        row.iter_mut().zip(vector).for_each(|(sum, y)| *sum += x * y);
    }
}

fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |row: &Vec<f64>| {
        let mut out = vec![0.0; b.first().map_or(0, Vec::len)];
        for (x, b) in row.iter().zip(b) {
            out.iter_mut().zip(b).for_each(|(out, y)| *out += x * y);
        }
        out
    };
    a.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn the_direction_in_which_users_differ_comes_first() {
        let mut draw = stream(Seed::new(1), "discriminant test", 0);
        // Users differ along (1, 1, 0)/√2 alone; groups of one user mostly along (1, −1, 0), and along the third axis.
        let (mut rows, mut owners) = (Vec::new(), Vec::new());
        for user in 0..60 {
            let taste = draw.normal();
            for _ in 0..8 {
                let (loud, quiet, third) = (3.0 * draw.normal(), 0.5 * draw.normal(), draw.normal());
                rows.push(vec![taste + loud + quiet, taste - loud + quiet, third]);
                owners.push(user);
            }
        }
        let first = Discriminants::of(&rows, &owners, 1);
        let direction = &first.rows[0];
        let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        let cosine = (direction[0] + direction[1]).abs() / (length * 2f64.sqrt());
        assert!(cosine > 0.97, "{direction:?}");
        assert_eq!(first.apply(&[0.0; 3]), [0.0]);
        assert_eq!(Discriminants::of(&rows, &owners, 9).apply(&rows[0]).len(), 3);
    }
}
