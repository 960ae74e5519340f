//! Attention as products over all heads of one sample, between workspaces that the next sample writes over: what a GPU
//! runs. Between the two passes nothing is kept; on the way back the weights are made again.
//!
//! The plan knows no device. CUDA multiplies by cuBLAS; a processor in its place holds the plan against [`Attention`].

use super::super::product::{Buffer, Product, Stack};
use super::*;

/// Columns start where a row's start is aligned for the widest loads of half-precision numbers.
const ALIGNED: usize = 8;

/// The rows of one sample's scores, heads one after the other.
#[derive(Debug, Clone, Copy)]
pub(in crate::nn) struct Rows {
    pub(in crate::nn) count: usize,
    /// Elements from one row to the next.
    pub(in crate::nn) stride: usize,
    pub(in crate::nn) queries: usize,
    /// Columns that stay empty between the positions' own keys and the external ones.
    pub(in crate::nn) gap: usize,
    /// Keys under the first softmax, and all of them.
    pub(in crate::nn) keys: (usize, usize),
    /// Keys that any query sees.
    pub(in crate::nn) length: usize,
    /// Whether a query sees no later key.
    pub(in crate::nn) causal: bool,
    /// `1 / √d`
    pub(in crate::nn) scale: f32,
}

/// What computes: a GPU, or the processor in a test.
pub(in crate::nn) trait Machine {
    fn multiply(&mut self, product: Product) -> TensorResult<()>;

    /// From scores to weights.
    fn weights(&mut self, rows: Rows) -> TensorResult<()>;

    /// From weights and their gradient, in the place of the scores, to slopes.
    fn slopes(&mut self, rows: Rows) -> TensorResult<()>;
}

/// The steps of one call.
pub(in crate::nn) struct Plan<'a> {
    op: &'a Attention,
    sizes: Sizes,
    batch: usize,
    /// The external keys' first column.
    column: usize,
    /// Columns of a row of scores.
    stride: usize,
}

impl<'a> Plan<'a> {
    pub(in crate::nn) fn new(op: &'a Attention, qkv: &[usize], external: &[usize]) -> Self {
        let sizes = op.sizes(qkv[1], qkv[2] / 3, external);
        let column = sizes.queries.next_multiple_of(ALIGNED);
        Self { op, sizes, batch: qkv[0], column, stride: (column + sizes.external).next_multiple_of(ALIGNED) }
    }

    /// Elements of each workspace.
    pub(in crate::nn) fn room(&self) -> usize {
        self.op.num_heads * self.sizes.queries * self.stride
    }

    fn rows(&self, b: usize) -> Rows {
        let Sizes { queries, depth, .. } = self.sizes;
        let (first, keys) = self.op.groups(self.sizes);
        let (causal, length) = match &self.op.mask {
            Mask::None => (false, keys),
            Mask::Causal => (true, keys),
            Mask::CausalPadded(lengths) => (true, lengths[b].min(keys)),
        };
        Rows {
            count: self.op.num_heads * queries,
            stride: self.stride,
            queries,
            gap: self.column - queries,
            keys: (first, keys),
            length,
            causal,
            scale: 1.0 / (depth as f32).sqrt(),
        }
    }

    fn stack(&self, buffer: Buffer, first: usize, row: usize) -> Stack {
        Stack { buffer, first, row, head: self.sizes.depth, transposed: false }
    }

    /// Sample `b`'s queries (0), keys (1) or values (2), or their gradients.
    fn own(&self, buffer: Buffer, b: usize, part: usize) -> Stack {
        let Sizes { queries, channels, .. } = self.sizes;
        self.stack(buffer, (b * queries * 3 + part) * channels, 3 * channels)
    }

    /// Sample `b`'s external keys (0) or values (1).
    fn other(&self, b: usize, part: usize) -> Stack {
        let Sizes { external, channels, .. } = self.sizes;
        self.stack(Buffer::Input(1), (b * external * 2 + part) * channels, 2 * channels)
    }

    /// Rows of (N, C).
    fn mixed(&self, buffer: Buffer, b: usize) -> Stack {
        let Sizes { queries, channels, .. } = self.sizes;
        self.stack(buffer, b * queries * channels, channels)
    }

    /// A workspace from a column on.
    fn workspace(&self, buffer: Buffer, column: usize) -> Stack {
        Stack {
            buffer,
            first: column,
            row: self.stride,
            head: self.sizes.queries * self.stride,
            transposed: false,
        }
    }

    /// Keys (0) or values (1) of sample `b`, their number and their first column.
    fn sources(&self, b: usize, part: usize) -> impl Iterator<Item = (Stack, usize, usize)> {
        let Sizes { queries, external, .. } = self.sizes;
        let own = (self.own(Buffer::Input(0), b, 1 + part), queries, 0);
        std::iter::once(own).chain((external > 0).then(|| (self.other(b, part), external, self.column)))
    }

    /// Products of `lhs` (queries, depth) with the keys or values, in the place of the scores.
    fn products(
        &self,
        b: usize,
        lhs: Stack,
        part: usize,
        scale: f32,
        machine: &mut impl Machine,
    ) -> TensorResult<()> {
        let (Sizes { queries, depth, .. }, heads) = (self.sizes, self.op.num_heads);
        self.sources(b, part).try_for_each(|(source, count, column)| {
            let (rhs, out) = (source.transposed(), self.workspace(Buffer::Scores, column));
            machine.multiply(Product {
                heads,
                shape: (queries, count, depth),
                scale,
                add: false,
                lhs,
                rhs,
                out,
            })
        })
    }

    /// What lies in `buffer` (queries, keys) times the keys or values.
    fn mix(
        &self,
        b: usize,
        buffer: Buffer,
        part: usize,
        out: Stack,
        machine: &mut impl Machine,
    ) -> TensorResult<()> {
        let (Sizes { queries, depth, .. }, heads) = (self.sizes, self.op.num_heads);
        self.sources(b, part).try_for_each(|(rhs, count, column)| {
            let (lhs, shape) = (self.workspace(buffer, column), (queries, depth, count));
            machine.multiply(Product { heads, shape, scale: 1.0, add: column > 0, lhs, rhs, out })
        })
    }

    fn weights(&self, b: usize, machine: &mut impl Machine) -> TensorResult<()> {
        let rows = self.rows(b);
        self.products(b, self.own(Buffer::Input(0), b, 0), 0, rows.scale, machine)?;
        machine.weights(rows)
    }

    /// The result, sample after sample.
    ///
    /// # Errors
    /// Those of the machine.
    pub(in crate::nn) fn forward(&self, machine: &mut impl Machine) -> TensorResult<()> {
        (0..self.batch).try_for_each(|b| {
            self.weights(b, machine)?;
            self.mix(b, Buffer::Weights, 1, self.mixed(Buffer::Output, b), machine)
        })
    }

    /// The gradients that are asked for: all of the positions', then all of the external ones', of which those that are
    /// frozen are left as they are.
    ///
    /// # Errors
    /// Those of the machine.
    pub(in crate::nn) fn backward(
        &self,
        (of_own, of_external): (bool, bool),
        machine: &mut impl Machine,
    ) -> TensorResult<()> {
        let Sizes { queries, external, channels, depth } = self.sizes;
        let (frozen, heads, scale) = (self.op.frozen, self.op.num_heads, 1.0);
        (0..self.batch).try_for_each(|b| {
            let dy = self.mixed(Buffer::Input(2), b);
            self.weights(b, machine)?;
            self.products(b, dy, 1, 1.0, machine)?;
            machine.slopes(self.rows(b))?;
            if of_own {
                self.mix(b, Buffer::Slopes, 0, self.own(Buffer::Output, b, 0), machine)?;
            }
            // Keys get dsᵀ Q, values pᵀ dy.
            let query = self.own(Buffer::Input(0), b, 0);
            for (part, (buffer, rhs)) in
                [(Buffer::Slopes, query), (Buffer::Weights, dy)].into_iter().enumerate()
            {
                let lhs = |column| self.workspace(buffer, column).transposed();
                if of_own {
                    let (shape, out) = ((queries, depth, queries), self.own(Buffer::Output, b, 1 + part));
                    machine.multiply(Product { heads, shape, scale, add: false, lhs: lhs(0), rhs, out })?;
                }
                if of_external && frozen < external {
                    let before = if of_own { self.batch * queries * 3 * channels } else { 0 };
                    let first = before + ((b * external + frozen) * 2 + part) * channels;
                    let out = self.stack(Buffer::Output, first, 2 * channels);
                    let (shape, lhs) = ((external - frozen, depth, queries), lhs(self.column + frozen));
                    machine.multiply(Product { heads, shape, scale, add: false, lhs, rhs, out })?;
                }
            }
            Ok(())
        })
    }
}

#[cfg(feature = "cuda")]
mod device {
    use candle_core::cuda::cudarc::driver::CudaSlice;

    use super::super::super::cuda::{Call, Element, warps};
    use super::*;

    /// A call on a GPU, and its workspaces.
    pub struct Gpu<'c, 'd, T> {
        call: &'c mut Call<'d, T>,
        scores: CudaSlice<f32>,
        weights: CudaSlice<u8>,
        slopes: CudaSlice<u8>,
    }

    impl<'c, 'd, T: Element> Gpu<'c, 'd, T> {
        /// Makes room for a plan; for slopes only on the way back.
        ///
        /// # Errors
        /// Where memory runs out.
        pub fn new(call: &'c mut Call<'d, T>, plan: &Plan, back: bool) -> TensorResult<Self> {
            let (numbers, bytes) = (plan.room(), plan.room() * size_of::<T>());
            Ok(Self {
                scores: call.unwritten(numbers)?,
                weights: call.unwritten(bytes)?,
                slopes: call.unwritten(if back { bytes } else { 1 })?,
                call,
            })
        }
    }

    fn sizes(rows: Rows) -> [Parameter<'static>; 6] {
        let (first, keys) = rows.keys;
        [rows.count, rows.stride, rows.queries, rows.gap, first, keys].map(|size| U32(size as u32))
    }

    impl<T: Element> Machine for Gpu<'_, '_, T> {
        fn multiply(&mut self, product: Product) -> TensorResult<()> {
            let product = product.by_column();
            let buffers = [product.lhs, product.rhs, product.out].map(|stack| match stack.buffer {
                Buffer::Input(index) => Input(index),
                Buffer::Output => Output,
                Buffer::Scores => Workspace(&self.scores),
                Buffer::Weights => Own(&self.weights),
                Buffer::Slopes => Own(&self.slopes),
            });
            self.call.multiply(product, buffers)
        }

        fn weights(&mut self, rows: Rows) -> TensorResult<()> {
            let buffers = [Workspace(&self.scores), Own(&self.weights)];
            let seen = [U32(rows.length as u32), I32(rows.causal.into())];
            let parameters = [&buffers[..], &sizes(rows), &seen].concat();
            self.call.launch("attention_weights", warps(rows.count), &parameters)
        }

        fn slopes(&mut self, rows: Rows) -> TensorResult<()> {
            let buffers = [Own(&self.weights), Workspace(&self.scores), Own(&self.slopes)];
            let parameters = [&buffers[..], &sizes(rows), &[F32(rows.scale)]].concat();
            self.call.launch("attention_slopes", warps(rows.count), &parameters)
        }
    }
}

#[cfg(feature = "cuda")]
pub(super) use device::Gpu;

#[cfg(test)]
mod tests {
    use super::super::super::softmax::{softmax, softmax_backward};
    use super::super::super::testing::{values, var};
    use super::*;

    /// The processor in the place of a GPU: it multiplies column by column, as cuBLAS is documented to. What nobody has
    /// written is NaN.
    struct Processor {
        inputs: [Vec<f32>; 3],
        output: Vec<f32>,
        rooms: [Vec<f32>; 3],
        mask: Mask,
        sample: usize,
    }

    impl Processor {
        fn buffer(&mut self, buffer: Buffer) -> &mut Vec<f32> {
            match buffer {
                Buffer::Input(index) => &mut self.inputs[index],
                Buffer::Output => &mut self.output,
                Buffer::Scores => &mut self.rooms[0],
                Buffer::Weights => &mut self.rooms[1],
                Buffer::Slopes => &mut self.rooms[2],
            }
        }

        /// The column of each key in a row.
        fn columns(rows: Rows) -> impl Iterator<Item = usize> {
            (0..rows.keys.1).map(move |key| key + if key < rows.queries { 0 } else { rows.gap })
        }

        /// Applies `change` to each head's rows of two workspaces, without the gaps, and stores the first in a third.
        fn by_head(
            &mut self,
            rows: Rows,
            [read, beside, write]: [usize; 3],
            change: impl Fn(&mut [f32], &[f32]),
        ) {
            let size = rows.queries * rows.stride;
            for head in 0..rows.count / rows.queries {
                let at: Vec<usize> = (0..rows.queries)
                    .flat_map(|row| Self::columns(rows).map(move |c| head * size + row * rows.stride + c))
                    .collect();
                let [mut numbers, others] =
                    [read, beside].map(|room| at.iter().map(|&i| self.rooms[room][i]).collect::<Vec<_>>());
                change(&mut numbers, &others);
                at.iter().zip(numbers).for_each(|(&i, number)| self.rooms[write][i] = number);
            }
        }
    }

    impl Machine for Processor {
        fn multiply(&mut self, product: Product) -> TensorResult<()> {
            let Product { heads, shape: (m, n, k), scale, add, lhs, rhs, out } = product.by_column();
            let at = |stack: Stack, head: usize, row: usize, column: usize| {
                let (row, column) = if stack.transposed { (column, row) } else { (row, column) };
                stack.first + head * stack.head + row + column * stack.row
            };
            for (head, j, i) in (0..heads * n * m).map(|e| (e / (n * m), e / m % n, e % m)) {
                let terms = (0..k).map(|l| {
                    self.buffer(lhs.buffer)[at(lhs, head, i, l)]
                        * self.buffer(rhs.buffer)[at(rhs, head, l, j)]
                });
                let sum = scale * terms.sum::<f32>();
                let out = &mut self.buffer(out.buffer)[at(out, head, i, j)];
                *out = sum + if add { *out } else { 0.0 };
            }
            Ok(())
        }

        fn weights(&mut self, rows: Rows) -> TensorResult<()> {
            let (mask, sample) = (self.mask.clone(), self.sample);
            if let Mask::CausalPadded(lengths) = &mask {
                assert_eq!(rows.length, lengths[sample]);
            }
            assert_eq!(rows.causal, mask != Mask::None);
            self.sample += 1;
            self.by_head(rows, [0, 0, 1], |scores, _| softmax(scores, rows.keys, sample, &mask));
            Ok(())
        }

        fn slopes(&mut self, rows: Rows) -> TensorResult<()> {
            self.by_head(rows, [0, 1, 2], |ds, p| softmax_backward(ds, p, rows.keys, rows.scale));
            Ok(())
        }
    }

    /// The plan's result and gradients are the operation's, for `external` tokens of which the last `users` are the user's
    /// and the first `frozen` need no gradient.
    fn holds(queries: usize, external: usize, users: usize, frozen: usize, mask: Mask) {
        let (batch, heads, channels) = (2, 3, 12);
        let first = (users > 0).then_some(queries + external - users);
        let op = Attention { num_heads: heads, mask: mask.clone(), first, frozen };
        let dims: [Vec<usize>; 3] = [
            vec![batch, queries, 3 * channels],
            if external > 0 { vec![batch, external, 2 * channels] } else { vec![0] },
            vec![batch, queries, channels],
        ];
        let inputs = [0, 1, 2].map(|i| values(&var(&candle_core::Device::Cpu, &dims[i], i as u64)));
        let arguments = || {
            let of = |i: usize| Argument { data: inputs[i].as_slice().into(), dims: &dims[i], column: None };
            [of(0), of(1), of(2)]
        };
        let plan = Plan::new(&op, &dims[0], &dims[1]);
        let machine = |count: usize, start: f32| Processor {
            inputs: inputs.clone(),
            output: vec![start; count],
            rooms: [(); 3].map(|()| vec![f32::NAN; plan.room()]),
            mask: mask.clone(),
            sample: 0,
        };
        let same = |ours: &[f32], theirs: &[f32], what: &str| {
            assert_eq!(ours.len(), theirs.len());
            let far = ours.iter().zip(theirs).any(|(a, b)| (a - b).abs() > 1e-5 || a.is_nan());
            assert!(!far, "{what} of {queries} queries, {external} external, {users} users, {frozen} frozen");
        };

        let mut expected = vec![f32::NAN; batch * queries * channels];
        op.cpu(arguments(), &mut expected);
        let mut ours = machine(expected.len(), f32::NAN);
        plan.forward(&mut ours).unwrap();
        same(&ours.output, &expected, "the result");

        for (of_own, of_external) in [(true, external > 0), (true, false), (false, external > 0)] {
            let back = AttentionBackward { op: op.clone(), of_own, of_external };
            let shape = back.shape([0, 1, 2].map(|i| &dims[i][..])).unwrap();
            let mut expected = vec![0.0; shape.elem_count()];
            back.cpu(arguments(), &mut expected);
            let mut ours = machine(expected.len(), f32::NAN);
            if of_external && frozen > 0 {
                let own = expected.len() - inputs[1].len();
                ours.output[own..].fill(0.0);
            }
            plan.backward((of_own, of_external), &mut ours).unwrap();
            same(&ours.output, &expected, "the gradient");
        }
    }

    #[test]
    fn the_plan_computes_the_operation_and_reads_nothing_unwritten() {
        holds(9, 7, 3, 4, Mask::None);
        holds(8, 7, 3, 0, Mask::None);
        holds(9, 7, 0, 0, Mask::None);
        holds(9, 0, 0, 0, Mask::Causal);
        holds(5, 0, 0, 0, Mask::CausalPadded(vec![2, 5]));
    }
}
