//! Worker threads, each of which runs whole micro-batches on one core.
//!
//! Small operations gain nothing from several threads, and candle's element-wise ones use a single one; two workers
//! on two micro-batches keep two cores busy from end to end. Results come back in the order of the items, so sums
//! over them do not depend on the number of workers.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A fixed set of single-threaded workers.
#[derive(Debug)]
pub struct Workers {
    pools: Vec<rayon::ThreadPool>,
}

impl Workers {
    /// Starts `count` workers, at least one.
    ///
    /// # Errors
    /// Where the system gives no more threads.
    pub fn new(count: usize) -> crate::error::Result<Self> {
        let pools = (0..count.max(1))
            .map(|_| rayon::ThreadPoolBuilder::new().num_threads(1).build())
            .collect::<Result<_, _>>()
            .map_err(|e| crate::error::Error::Tensor(format!("cannot start {count} worker threads: {e}")))?;
        Ok(Self { pools })
    }

    /// The number of workers.
    pub fn count(&self) -> usize {
        self.pools.len()
    }

    /// Applies `work` to each item, each worker taking the next one when it is free; results keep the items' order.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
        let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
        self.each(items, |i, item| {
            let result = work(i, item);
            *results[i].lock().expect("a worker that panicked ends the scope") = Some(result);
        });
        results
            .into_iter()
            .map(|slot| slot.into_inner().expect("no worker panicked").expect("every item was taken"))
            .collect()
    }

    /// Applies `work` to each item and `take` to each result, in the items' order, as soon as it is its turn: no more
    /// results wait than workers are ahead. After the first error no further item is begun.
    ///
    /// # Errors
    /// The first one in the items' order among those that were met.
    pub fn fold<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> crate::error::Result<R> + Sync,
        take: impl FnMut(R) -> crate::error::Result<()> + Send,
    ) -> crate::error::Result<()> {
        struct State<R, F> {
            turn: usize,
            early: BTreeMap<usize, crate::error::Result<R>>,
            take: F,
            outcome: crate::error::Result<()>,
        }
        let state = Mutex::new(State { turn: 0, early: BTreeMap::new(), take, outcome: Ok(()) });
        let failed = AtomicBool::new(false);
        self.each(items, |i, item| {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let result = work(item);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            let mut state = state.lock().expect("a worker that panicked ends the scope");
            let State { turn, early, take, outcome } = &mut *state;
            early.insert(i, result);
            while let Some(result) = early.remove(turn) {
                *turn += 1;
                if outcome.is_ok() {
                    *outcome = result.and_then(&mut *take);
                }
            }
            if outcome.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
        });
        let State { early, outcome, .. } = state.into_inner().expect("no worker panicked");
        // Behind an item that was not begun there may be one that failed.
        outcome.and_then(|()| early.into_values().try_for_each(|result| result.map(drop)))
    }

    /// Applies `work` to each item, each worker taking the next one when it is free.
    fn each<T: Sync>(&self, items: &[T], work: impl Fn(usize, &T) + Sync) {
        let next = AtomicUsize::new(0);
        let (next, work) = (&next, &work);
        std::thread::scope(|scope| {
            for pool in &self.pools {
                scope.spawn(move || {
                    pool.install(|| {
                        loop {
                            let i = next.fetch_add(1, Ordering::Relaxed);
                            let Some(item) = items.get(i) else { break };
                            work(i, item);
                        }
                    });
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;

    use super::super::testing::on_each_device;
    use super::*;
    use crate::error::Error;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let squares = Workers::new(3).unwrap().map(&items, |_, &x| x * x);
        assert_eq!(squares, items.iter().map(|x| x * x).collect::<Vec<_>>());
    }
    #[test]
    fn results_are_taken_in_the_order_of_the_items_and_one_error_ends_it() {
        let items: Vec<usize> = (0..100).collect();
        for count in [1, 3] {
            let workers = Workers::new(count).unwrap();
            let mut taken = Vec::new();
            let late_first = |x: &usize| {
                // The first ones are the slowest.
                std::thread::sleep(std::time::Duration::from_micros(200 / (x + 1) as u64));
                Ok(x * x)
            };
            let take = |square| {
                taken.push(square);
                Ok(())
            };
            workers.fold(&items, late_first, take).unwrap();
            assert_eq!(taken, items.iter().map(|x| x * x).collect::<Vec<_>>());

            let fails = |x: &usize| if *x == 7 { Err(Error::Shape("seven".into())) } else { Ok(*x) };
            let mut sum = 0;
            let add = |x| {
                sum += x;
                Ok(())
            };
            assert_eq!(workers.fold(&items, fails, add).unwrap_err().to_string(), "seven");
            assert!(sum <= 21, "nothing behind the error is taken: {sum}");
        }
    }

    #[test]
    fn what_a_worker_computes_is_there_for_every_thread() {
        on_each_device(|device| {
            let items: Vec<f32> = (0..20u8).map(f32::from).collect();
            let parts = Workers::new(2).unwrap().map(&items, |_, &x| {
                let xs = Tensor::full(x, 1000, device).unwrap();
                (xs.sum_keepdim(0).unwrap() + 1.0).unwrap()
            });
            let sums = Tensor::cat(&parts, 0).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(sums, items.iter().map(|x| 1000.0 * x + 1.0).collect::<Vec<_>>());
        });
    }
}
