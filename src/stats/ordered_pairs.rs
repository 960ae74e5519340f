//! The mean of what is measured of ordered pairs of users, such as how much each would rather have her own image than each
//! other user's.
//!
//! # Equation
//! For values `h(i, j)` of n users, `i ≠ j`, with row means `h(i, ·)` and column means `h(·, j)`:
//!
//! ```text
//! U   = Σ_{i≠j} h(i, j) / n(n − 1)
//! a_i = h(i, ·) + h(·, i) − U
//! ```
//!
//! The mean of the `a_i` is `U`, and they vary between users as the first term of `U` does (Hoeffding 1948), so that an
//! interval of their mean over users is one of `U`: every user stands in it both as the one who looks and as the one whose
//! images are looked at.

/// The `a_i` of a square matrix whose diagonal is not read; none of fewer than two users.
pub fn projected(values: &[Vec<f64>]) -> Vec<f64> {
    let count = values.len();
    if count < 2 {
        return Vec::new();
    }
    let others = (count - 1) as f64;
    let row = |i: usize| (0..count).filter(|&j| j != i).map(|j| values[i][j]).sum::<f64>() / others;
    let column = |j: usize| (0..count).filter(|&i| i != j).map(|i| values[i][j]).sum::<f64>() / others;
    let rows: Vec<f64> = (0..count).map(row).collect();
    let mean = rows.iter().sum::<f64>() / count as f64;
    rows.iter().enumerate().map(|(i, row)| row + column(i) - mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::stats::{Clusters, Inference};
    use crate::units::Seed;

    #[test]
    fn the_mean_is_that_of_all_ordered_pairs() {
        let values = [vec![9.0, 1.0, 2.0], vec![3.0, 9.0, 4.0], vec![5.0, 6.0, 9.0]];
        let projected = projected(&values);
        // Rows 1.5, 3.5, 5.5; columns 4, 3.5, 3; the mean 3.5.
        assert_eq!(projected, [2.0, 3.5, 5.0]);
        assert!(super::projected(&[vec![0.0]]).is_empty());
    }

    #[test]
    fn intervals_cover_the_mean_where_users_differ_both_as_who_looks_and_as_who_is_looked_at() {
        let studies = 400;
        let mut covered = 0;
        for study in 0..studies {
            let mut draw = stream(Seed::new(3), "ordered pairs test", study);
            let effects: Vec<[f64; 2]> = (0..30).map(|_| [draw.normal(), -0.7 * draw.normal()]).collect();
            let values: Vec<Vec<f64>> = effects
                .iter()
                .map(|[looks, _]| {
                    effects.iter().map(|[_, shown]| 0.4 + looks + shown + draw.normal()).collect()
                })
                .collect();
            let users: Vec<u64> = (0..30).collect();
            let inference: Inference =
                Clusters::new(&projected(&values), &users).unwrap().inference(300, Seed::new(1)).unwrap();
            let estimate = inference.estimate(0.95);
            covered += u32::from(estimate.low <= 0.4 && 0.4 <= estimate.high);
        }
        // Four standard errors below 95 %, and, for 30 users, a little above it.
        assert!((363..=396).contains(&covered), "{covered} of {studies}");
    }
}
