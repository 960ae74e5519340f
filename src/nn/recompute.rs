//! Trades time for memory: a part of a network that keeps no graph on the way forward and is run again on the way back.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Shape, Storage, Tensor, Var};

use super::TensorResult;

/// How many tensors go into such a part; what it reads beside them must be frozen.
pub const INPUTS: usize = 3;

/// `body(inputs)` whose graph is made on the way back only (gradient checkpointing): between the two passes its inputs and
/// its result are all that is kept of it.
///
/// # Errors
/// Those of `body`.
pub fn recompute<F>(inputs: [&Tensor; INPUTS], body: F) -> TensorResult
where
    F: Fn([&Tensor; INPUTS]) -> TensorResult + Send + Sync + 'static,
{
    if !inputs.iter().any(|input| input.track_op()) {
        return body(inputs);
    }
    let frozen = inputs.map(Tensor::detach);
    let result = body(frozen.each_ref())?.force_contiguous()?;
    let shape = result.shape().clone();
    inputs[0].apply_op3(inputs[1], inputs[2], Recompute { result: Mutex::new(Some(result)), shape, body })
}

struct Recompute<F> {
    /// Handed over on the way forward: from then on the graph's own copy is the only one.
    result: Mutex<Option<Tensor>>,
    shape: Shape,
    body: F,
}

impl<F> Recompute<F> {
    fn take(&self) -> TensorResult {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.ok_or_else(|| candle_core::Error::Msg("recompute: went forward twice".into()))
    }
}

impl<F> CustomOp3 for Recompute<F>
where
    F: Fn([&Tensor; INPUTS]) -> TensorResult + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> TensorResult<(CpuStorage, Shape)> {
        match &*self.take()?.storage_and_layout().0 {
            Storage::Cpu(storage) => Ok((storage.clone(), self.shape.clone())),
            _ => candle_core::bail!("recompute: the result is on another device than its input"),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> TensorResult<(CudaStorage, Shape)> {
        let result = self.take()?;
        let (storage, layout) = result.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.shape.clone())),
            _ => candle_core::bail!("recompute: the result is on another device than its input"),
        }
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> TensorResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs = [a, b, c];
        let again = inputs.map(|input| match input.track_op() {
            true => Var::from_tensor(&input.detach()).map(Var::into_inner),
            false => Ok(input.clone()),
        });
        let [a, b, c] = again;
        let again = [a?, b?, c?];
        let projected = ((self.body)(again.each_ref())? * grad)?.sum_all()?;
        let mut grads = projected.backward()?;
        let mut of = |i: usize| if inputs[i].track_op() { grads.remove(&again[i]) } else { None };
        Ok((of(0), of(1), of(2)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::testing::*;
    use super::*;

    #[test]
    fn values_and_gradients_are_those_of_the_plain_graph() {
        on_each_device(|device| {
            let (x, y, z) = (var(device, &[3, 4], 0), var(device, &[4, 5], 1), var(device, &[3, 5], 2));
            let body = |[x, y, z]: [&Tensor; 3]| x.matmul(y)?.sqr()?.mul(z);
            let plain = body([&x, &y, &z]).unwrap();
            same(&recompute([&x, &y, &z], body).unwrap(), &plain, &[&x, &y, &z], 1e-9);

            let frozen = y.as_tensor().detach();
            same(&recompute([&x, &frozen, &z], body).unwrap(), &plain, &[&x, &z], 1e-9);
        });
    }

    #[test]
    fn the_body_runs_once_forward_and_once_back() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let (x, none) = (var(&Device::Cpu, &[3], 0), Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap());
        let ys = recompute([&x, &none, &none], move |[x, ..]| {
            counted.fetch_add(1, Ordering::Relaxed);
            x.sqr()
        });
        let ys = ys.unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        ys.sum_all().unwrap().backward().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }
}
