//! A user's few examples (the paper: N = 4): disjoint groups of one user's pairs, shuffled from a seed.
//!
//! Users with fewer pairs than a group has are left out (the paper leaves out 824), and so is what is left over when a
//! user's pairs are cut into groups; both are counted. The paper's own code shuffles without a seed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::stream;
use crate::units::Seed;

/// How groups are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the order of each user's pairs is drawn from.
    pub seed: Seed,
    /// How many pairs show what a user likes.
    pub shots: usize,
    /// How many further pairs of the same user a group has to ask about: 0 to embed users, 1 to judge.
    pub targets: usize,
    /// The most groups of one user; absent: as many as there are.
    pub per_user: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self { seed: Seed::new(0), shots: 4, targets: 0, per_user: None }
    }
}

/// Pairs of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Whose they are.
    pub user: i64,
    /// The places of the pairs that show what the user likes.
    pub shots: Vec<usize>,
    /// The places of those that are asked about.
    pub targets: Vec<usize>,
}

/// All groups, and what is in none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// By user, and in the order drawn.
    pub groups: Vec<Group>,
    /// Users with at least one group.
    pub users: usize,
    /// Users with fewer pairs than a group has.
    pub users_with_too_few: usize,
    /// Their pairs.
    pub pairs_of_too_few: usize,
    /// Pairs that were left over when a user's pairs were cut into groups.
    pub remainder: usize,
    /// Pairs of groups above the most of one user.
    pub above_most: usize,
}

/// Cuts each user's pairs into groups; `pairs` are places with their users.
///
/// # Errors
/// [`Error::Spec`] where a group would have no shot.
pub fn groups(pairs: impl IntoIterator<Item = (usize, i64)>, config: &Config) -> Result<Groups> {
    if config.shots == 0 {
        return Err(Error::Spec("a group needs at least one shot, got 0".into()));
    }
    let size = config.shots + config.targets;
    let mut by_user: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (place, user) in pairs {
        by_user.entry(user).or_default().push(place);
    }
    let mut all = Groups::default();
    for (user, mut places) in by_user {
        if places.len() < size {
            all.users_with_too_few += 1;
            all.pairs_of_too_few += places.len();
            continue;
        }
        all.users += 1;
        stream(config.seed, "few-shot", user as u64).shuffle(&mut places);
        let chunks = places.chunks_exact(size);
        all.remainder += chunks.remainder().len();
        for (index, chunk) in chunks.enumerate() {
            if config.per_user.is_some_and(|most| index >= most) {
                all.above_most += size;
                continue;
            }
            let (shots, targets) = chunk.split_at(config.shots);
            all.groups.push(Group { user, shots: shots.to_vec(), targets: targets.to_vec() });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// User u has u pairs.
    fn pairs() -> Vec<(usize, i64)> {
        let owners: Vec<i64> = (0..13i64).flat_map(|user| vec![user; user as usize]).collect();
        let mut pairs: Vec<(usize, i64)> = owners.into_iter().enumerate().collect();
        stream(Seed::new(2), "order", 0).shuffle(&mut pairs);
        pairs
    }

    #[test]
    fn groups_are_disjoint_and_everything_is_counted() {
        let all = groups(pairs(), &Config::default()).unwrap();
        assert_eq!((all.users, all.users_with_too_few, all.pairs_of_too_few), (9, 3, 6));
        let mut seen = std::collections::BTreeSet::new();
        let owner: BTreeMap<usize, i64> = pairs().into_iter().collect();
        for group in &all.groups {
            assert_eq!((group.shots.len(), group.targets.len()), (4, 0));
            assert!(group.shots.iter().all(|place| owner[place] == group.user && seen.insert(*place)));
        }
        assert_eq!(4 * all.groups.len() + all.remainder + all.pairs_of_too_few, pairs().len());
        assert_eq!(all.remainder, (4..13).map(|n| n % 4).sum::<usize>());
        assert_eq!(groups(pairs(), &Config::default()).unwrap(), all, "the same seed, the same groups");
        assert_ne!(groups(pairs(), &Config { seed: Seed::new(1), ..Config::default() }).unwrap(), all);
    }

    #[test]
    fn targets_are_further_pairs_and_the_most_of_a_user_is_kept() {
        let config = Config { targets: 1, per_user: Some(1), ..Config::default() };
        let all = groups(pairs(), &config).unwrap();
        assert_eq!((all.users, all.groups.len(), all.users_with_too_few), (8, 8, 4));
        assert_eq!(all.above_most, 15, "the second groups of users 10, 11 and 12");
        assert!(all.groups.iter().all(|group| !group.shots.contains(&group.targets[0])));
        assert!(groups([], &Config { shots: 0, ..config }).is_err());
    }
}
