//! What the strict rule, counting only pairs that the judge decides alike in both orders, does to a rate.
//!
//! A judge that is right in a share p of its calls, with errors that are independent between the two orders, is consistent
//! where it is right twice or wrong twice. Among those pairs it is right more often than p: a strict rate is no measure of a
//! call's accuracy, and two judges' strict rates compare only together with their consistencies.
//!
//! | p of a call | strict rate | consistency |
//! |---|---|---|
//! | 0.500 | 0.500 | 0.500 |
//! | 0.600 | 0.692 | 0.520 |
//! | 0.670 | 0.805 | 0.558 |
//! | 0.700 | 0.845 | 0.580 |
//! | 0.800 | 0.941 | 0.680 |
//! | 0.900 | 0.988 | 0.820 |
//!
//! The paper reports 83 % under this rule; with independent errors a call that is right in 69 % gives as much.

/// What a judge of a given accuracy gives under the strict rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strict {
    /// The share of consistent pairs that are right.
    pub rate: f64,
    /// The share of pairs that are consistent.
    pub consistency: f64,
}

/// What a judge gives that is right in a share `accuracy` of its calls; `None` outside [0, 1].
///
/// # Equation
/// rate p² / (p² + (1 − p)²) of a share p² + (1 − p)² of the pairs. Errors that go together in both orders (a pair that is hard)
/// raise the consistency and lower the rate. A favourite slot that adds to the log-odds leaves the rate of a pair as it is, and lowers
/// its consistency.
pub fn of_accuracy(accuracy: f64) -> Option<Strict> {
    if !(0.0..=1.0).contains(&accuracy) {
        return None;
    }
    let (right, wrong) = (accuracy * accuracy, (1.0 - accuracy) * (1.0 - accuracy));
    Some(Strict { rate: right / (right + wrong), consistency: right + wrong })
}

/// The accuracy of a call that, with independent errors, gives this strict rate; `None` outside [0, 1].
///
/// # Equation
/// p / (1 − p) = √(rate / (1 − rate)).
pub fn accuracy_behind(rate: f64) -> Option<f64> {
    let (right, wrong) = ((0.0..=1.0).contains(&rate).then(|| rate.sqrt())?, (1.0 - rate).sqrt());
    Some(right / (right + wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;
    use crate::units::Seed;

    #[test]
    fn the_table_is_what_the_function_gives() {
        // The rows of the module's table, read from its own source.
        let rows: Vec<Vec<f64>> = include_str!("strict.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .map(|line| line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect())
            .filter(|cells: &Vec<f64>| cells.len() == 3)
            .collect();
        assert_eq!(rows.len(), 6);
        for row in rows {
            let strict = of_accuracy(row[0]).unwrap();
            assert!(
                (strict.rate - row[1]).abs() <= 0.0005 && (strict.consistency - row[2]).abs() <= 0.0005,
                "{row:?}"
            );
            assert!((accuracy_behind(strict.rate).unwrap() - row[0]).abs() < 1e-12);
        }
        // 67 % a call become 80.5 %; 83 % come from 69 %.
        assert_eq!(format!("{:.3}", of_accuracy(0.67).unwrap().rate), "0.805");
        assert_eq!(format!("{:.2}", accuracy_behind(0.83).unwrap()), "0.69");
        assert_eq!((of_accuracy(1.5), of_accuracy(f64::NAN), accuracy_behind(-0.1)), (None, None, None));
    }

    #[test]
    fn independent_errors_do_as_the_equation_says() {
        let (mut draws, mut right, mut consistent) = (stream(Seed::new(5), "strict rule", 0), 0, 0);
        for _ in 0..40_000 {
            let pair = [draws.chance(0.67), draws.chance(0.67)];
            consistent += i32::from(pair[0] == pair[1]);
            right += i32::from(pair[0] && pair[1]);
        }
        let expected = of_accuracy(0.67).unwrap();
        // Four standard errors of a share of 22,000 and of 40,000.
        assert!((f64::from(right) / f64::from(consistent) - expected.rate).abs() < 0.0107);
        assert!((f64::from(consistent) / 40_000.0 - expected.consistency).abs() < 0.01);
    }
}
