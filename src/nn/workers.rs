//! Worker threads, each of which runs whole micro-batches on one core.
//!
//! Small operations gain nothing from several threads, and candle's element-wise ones use a single one; two workers
//! on two micro-batches keep two cores busy from end to end. Results come back in the order of the items, so sums
//! over them do not depend on the number of workers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
        let (next, results_ref, work) = (&next, &results, &work);
        std::thread::scope(|scope| {
            for pool in &self.pools {
                scope.spawn(move || {
                    pool.install(|| {
                        loop {
                            let i = next.fetch_add(1, Ordering::Relaxed);
                            let Some(item) = items.get(i) else { break };
                            let result = work(i, item);
                            *results_ref[i].lock().expect("a worker that panicked ends the scope") =
                                Some(result);
                        }
                    });
                });
            }
        });
        results
            .into_iter()
            .map(|slot| slot.into_inner().expect("no worker panicked").expect("every item was taken"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let squares = Workers::new(3).unwrap().map(&items, |_, &x| x * x);
        assert_eq!(squares, items.iter().map(|x| x * x).collect::<Vec<_>>());
    }
}
