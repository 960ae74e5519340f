//! What starts several processes of one run tells each: `torchrun` by `RANK`, `srun` by `SLURM_PROCID`.

use crate::error::{Error, Result};

/// This process among those of its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are; at least two.
    pub world_size: usize,
    /// This process's number on its machine: which of the machine's GPUs is its own.
    pub local: usize,
    /// What tells this run from others that share its folders.
    pub job: String,
}

/// The variables of each starter: rank, world size, number on the machine, and what names the job. Slurm tells a batch
/// script too that it is task 0 of many; only in a step, which `srun` starts, do the others run.
const STARTERS: [([&str; 3], &[&str]); 2] = [
    (["RANK", "WORLD_SIZE", "LOCAL_RANK"], &["TORCHELASTIC_RUN_ID", "MASTER_PORT"]),
    (["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"], &["SLURM_JOB_ID", "SLURM_STEP_ID"]),
];

impl Ranks {
    /// Reads the environment; `None` for a process that is alone.
    ///
    /// # Errors
    /// [`Error::Spec`] where a starter's variables are there but make no sense.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for ([rank, world_size, local], job) in STARTERS {
            let number = |name: &str| -> Result<Option<usize>> {
                let Some(text) = variable(name) else { return Ok(None) };
                text.trim().parse().map(Some).map_err(|_| {
                    Error::Spec(format!("the environment's {name} is {text:?}, expected a whole number"))
                })
            };
            let (Some(own), Some(count)) = (number(rank)?, number(world_size)?) else { continue };
            if count < 2 {
                continue;
            }
            if own >= count {
                return Err(Error::Spec(format!(
                    "the environment's {rank} is {own}, but {world_size} says that there are {count} processes"
                )));
            }
            let names: Vec<String> = job.iter().filter_map(|name| variable(name)).collect();
            let local = number(local)?.unwrap_or(own);
            return Ok(Some(Self { rank: own, world_size: count, local, job: names.join("-") }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Ranks>> {
        Ranks::read(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn both_starters_are_understood() {
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_PORT", "29500")];
        let expected = Ranks { rank: 3, world_size: 4, local: 1, job: "29500".into() };
        assert_eq!(read(&torchrun).unwrap(), Some(expected));
        let srun = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "0"),
        ];
        let expected = Ranks { rank: 0, world_size: 2, local: 0, job: "77-0".into() };
        assert_eq!(read(&srun).unwrap(), Some(expected));
    }

    #[test]
    fn a_process_that_is_alone_is_alone() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), None);
        // A batch script's own shell.
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "77")];
        assert_eq!(read(&batch).unwrap(), None);
        assert_eq!(read(&[("RANK", "0")]).unwrap(), None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = read(&[("RANK", "one"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.contains("RANK") && message.contains("\"one\""), "{message}");
        let message = read(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(message.contains("WORLD_SIZE"), "{message}");
    }
}
