//! How the processes of one run, its *ranks*, sum what each has computed.
//!
//! Every rank holds the whole model and the whole plan, takes its share of each batch, and makes the same update from the
//! same sums; nothing is sent but errors and gradients. [`Alone`] is the usual single process; [`Simulated`] ranks are
//! threads of one process, and prove the arithmetic on the CPU.

#[cfg(feature = "nccl")]
pub mod nccl;

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// One rank's view of all of them. All ranks call the same functions in the same order.
pub trait Collective: Send + Sync {
    /// This rank's number, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are: the world's size.
    fn world_size(&self) -> usize;

    /// All-reduce: the sum over all ranks of each number, the same on every rank.
    ///
    /// # Errors
    /// Those of the network.
    fn all_reduce_numbers(&self, numbers: Vec<f64>) -> Result<Vec<f64>>;

    /// All-reduce of a single-precision tensor: the sum over all ranks of each element, the same on every rank.
    ///
    /// # Errors
    /// Those of the network and of the tensor library.
    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor>;
}

/// The part of a batch that a rank takes: as many neighbours as every other rank.
///
/// # Errors
/// [`Error::Spec`] where the ranks do not divide the batch.
pub fn share<'a, T>(batch: &'a [T], collective: &dyn Collective) -> Result<&'a [T]> {
    let (rank, ranks) = (collective.rank(), collective.world_size());
    check(batch.len(), ranks)?;
    let each = batch.len() / ranks;
    Ok(&batch[rank * each..(rank + 1) * each])
}

/// Refuses a number of ranks that does not divide the batch, before any work.
///
/// # Errors
/// [`Error::Spec`] where it does not.
pub fn check(batch: usize, ranks: usize) -> Result<()> {
    if ranks == 0 || !batch.is_multiple_of(ranks) {
        let fitting: Vec<String> =
            (1..=batch).filter(|n| batch.is_multiple_of(*n)).map(|n| n.to_string()).collect();
        return Err(Error::Spec(format!(
            "train.pairs_per_step is {batch}, which {ranks} ranks do not divide; start {} ranks, or change \
             train.pairs_per_step",
            fitting.join(", ")
        )));
    }
    Ok(())
}

/// Whether any rank says so; all ranks hear the same.
///
/// # Errors
/// Those of the network.
pub fn any(own: bool, collective: &dyn Collective) -> Result<bool> {
    if collective.world_size() == 1 {
        return Ok(own);
    }
    Ok(collective.all_reduce_numbers(vec![f64::from(u8::from(own))])?[0] > 0.0)
}

/// A result that only stands where every rank has one: where any failed, all fail, and none waits for another.
///
/// # Errors
/// The rank's own error, or that another failed.
pub fn agree<T>(own: Result<T>, collective: &dyn Collective) -> Result<T> {
    let failed = any(own.is_err(), collective);
    let own = own?;
    if failed? {
        return Err(Error::Tensor("another rank failed; its own message says why".into()));
    }
    Ok(own)
}

/// All-gather: the numbers of all ranks, in the order of the ranks; each gives as many.
///
/// # Errors
/// Those of the network.
pub fn all_gather(numbers: &[f64], collective: &dyn Collective) -> Result<Vec<f64>> {
    let (rank, ranks) = (collective.rank(), collective.world_size());
    if ranks == 1 {
        return Ok(numbers.to_vec());
    }
    // Adding zeros is exact: the sum *is* every rank's numbers.
    let mut all = vec![0.0; ranks * numbers.len()];
    all[rank * numbers.len()..][..numbers.len()].copy_from_slice(numbers);
    collective.all_reduce_numbers(all)
}

/// A single process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_numbers(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        Ok(numbers)
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.clone())
    }
}

/// A rank that is a thread of this process.
#[derive(Debug, Clone)]
pub struct Simulated {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// Where simulated ranks meet: each lays down what it has, and all read it.
#[derive(Debug)]
struct Meeting {
    barrier: Barrier,
    numbers: Mutex<Vec<Vec<f64>>>,
    elements: Mutex<Vec<Vec<f32>>>,
}

impl Simulated {
    /// All ranks of one meeting; each belongs to a thread of its own.
    pub fn ranks(count: usize) -> Vec<Self> {
        let meeting = Arc::new(Meeting {
            barrier: Barrier::new(count),
            numbers: Mutex::new(vec![Vec::new(); count]),
            elements: Mutex::new(vec![Vec::new(); count]),
        });
        (0..count).map(|rank| Self { rank, meeting: meeting.clone() }).collect()
    }

    /// Adds up what all ranks lay down, in the order of the ranks.
    fn sum<T: Copy + std::ops::AddAssign>(&self, table: &Mutex<Vec<Vec<T>>>, mine: Vec<T>) -> Result<Vec<T>> {
        let on = |table: &'_ Mutex<Vec<Vec<T>>>, mine: Option<Vec<T>>| -> Result<Option<Vec<T>>> {
            let mut all = table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mine) = mine {
                all[self.rank] = mine;
                return Ok(None);
            }
            let mut sum = all[0].clone();
            for other in &all[1..] {
                if other.len() != sum.len() {
                    let (first, got) = (sum.len(), other.len());
                    return Err(Error::Shape(format!("one rank sums {first} values, another {got}")));
                }
                sum.iter_mut().zip(other).for_each(|(sum, x)| *sum += *x);
            }
            Ok(Some(sum))
        };
        on(table, Some(mine))?;
        self.meeting.barrier.wait();
        let sum = on(table, None);
        // Nobody lays down the next values before all have read these.
        self.meeting.barrier.wait();
        Ok(sum?.unwrap_or_default())
    }
}

impl Collective for Simulated {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.meeting.numbers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn all_reduce_numbers(&self, numbers: Vec<f64>) -> Result<Vec<f64>> {
        self.sum(&self.meeting.numbers, numbers)
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor> {
        let mine = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let sum = self.sum(&self.meeting.elements, mine)?;
        Ok(Tensor::from_vec(sum, tensor.shape(), tensor.device())?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// What each rank's closure gives, in the order of the ranks.
    fn on_ranks<R: Send>(count: usize, work: impl Fn(&Simulated) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let ranks = Simulated::ranks(count);
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|rank| {
                    scope.spawn({
                        let work = &work;
                        move || work(&rank)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_the_same_sum_again_and_again() {
        let sums = on_ranks(3, |rank| {
            (0..50)
                .map(|round| {
                    let x = (rank.rank() * 100 + round) as f32;
                    let tensor = Tensor::new(&[x, 1.0], &Device::Cpu).unwrap();
                    let sum: Vec<f32> = rank.all_reduce(&tensor).unwrap().to_vec1().unwrap();
                    let numbers = rank.all_reduce_numbers(vec![f64::from(x)]).unwrap();
                    (sum, numbers)
                })
                .collect::<Vec<_>>()
        });
        let expected: Vec<_> =
            (0..50).map(|r| (vec![300.0 + 3.0 * r as f32, 3.0], vec![300.0 + 3.0 * f64::from(r)])).collect();
        assert!(sums.iter().all(|of_rank| *of_rank == expected));
    }

    #[test]
    fn where_one_rank_fails_all_do_and_go_on_together() {
        let outcomes = on_ranks(3, |rank| {
            let own =
                if rank.rank() == 1 { Err(Error::Spec("its own reason".into())) } else { Ok(rank.rank()) };
            let first = agree(own, rank).map_err(|fault| fault.to_string());
            (first, agree(Ok(7), rank).unwrap())
        });
        for (rank, (first, second)) in outcomes.into_iter().enumerate() {
            let message = first.unwrap_err();
            assert_eq!(message.contains("its own reason"), rank == 1, "{message}");
            assert_eq!(second, 7);
        }
    }

    #[test]
    fn shares_are_the_batch_and_gathering_puts_them_together_again() {
        let batch: Vec<f64> = (0..12).map(|i| 0.1 * f64::from(i)).collect();
        for count in [1, 2, 3, 4, 6, 12] {
            let gathered = on_ranks(count, |rank| all_gather(share(&batch, rank).unwrap(), rank).unwrap());
            assert!(gathered.iter().all(|all| *all == batch), "{count} ranks");
        }
        assert_eq!(share(&batch, &Alone).unwrap(), batch);
        let message = check(12, 5).unwrap_err().to_string();
        assert!(message.contains("5 ranks") && message.contains("1, 2, 3, 4, 6, 12"), "{message}");
        assert!(check(12, 0).is_err());
    }
}
