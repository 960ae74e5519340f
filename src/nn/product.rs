//! Products of the matrices that one operation's heads have, as cuBLAS takes them in one call.

/// What a matrix lies in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Buffer {
    /// The operation's argument of that index.
    Input(usize),
    /// The operation's result.
    Output,
    /// Scaled scores, then the gradient of the weights: single precision.
    Scores,
    /// The weights, in the operation's precision.
    Weights,
    /// The gradient of the scaled scores, in the operation's precision.
    Slopes,
}

/// One matrix for each head, row by row.
#[derive(Debug, Clone, Copy)]
pub struct Stack {
    pub buffer: Buffer,
    /// The first head's first element.
    pub first: usize,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one head to the next.
    pub head: usize,
    /// Whether it stands for its transpose.
    pub transposed: bool,
}

impl Stack {
    /// The same, standing for its transpose.
    pub fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }
}

/// `out (m, n) = [out +] scale · lhs (m, k) · rhs (k, n)` for each of `heads`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub heads: usize,
    pub shape: (usize, usize, usize),
    pub scale: f32,
    pub add: bool,
    pub lhs: Stack,
    pub rhs: Stack,
    pub out: Stack,
}

impl Product {
    /// The same for who reads matrices column by column, as cuBLAS does: what lies row by row is its transpose to them, so
    /// the arguments change places, and an argument is transposed to them where it is here.
    pub fn by_column(self) -> Self {
        let (m, n, k) = self.shape;
        Self { shape: (n, m, k), lhs: self.rhs, rhs: self.lhs, ..self }
    }
}
