//! A weight file read through another layout's names.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::Weights;
use crate::error::{Error, Result};
use crate::models::layout::Place;

/// From the name that a model asks for to its place in the file.
type Layout = Box<dyn Fn(&str) -> Place + Send + Sync>;

impl Weights {
    /// As [`Weights::builder`], where the file keeps its tensors in the places that `layout` says.
    pub fn builder_in(
        &self,
        layout: impl Fn(&str) -> Place + Send + Sync + 'static,
        dtype: DType,
        device: &Device,
    ) -> VarBuilder<'static> {
        let relaid = Relaid { weights: self.clone(), layout: Box::new(layout) };
        VarBuilder::from_backend(Box::new(relaid), dtype, device.clone())
    }
}

struct Relaid {
    weights: Weights,
    layout: Layout,
}

impl Relaid {
    fn read(&self, name: &str, expected: Option<&Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let Place { name, part } = (self.layout)(name);
        let Some((index, parts)) = part else {
            return match expected {
                Some(shape) => self.weights.get(shape, &name, dtype, device),
                None => self.weights.read(&name, dtype, device),
            };
        };
        let whole = match expected.map(Shape::dims) {
            Some([rows, rest @ ..]) => {
                self.weights.get([&[parts * rows], rest].concat(), &name, dtype, device)?
            }
            _ => self.weights.read(&name, dtype, device)?,
        };
        let rows = whole.dims().first().map_or(0, |rows| rows / parts);
        if rows == 0 {
            return Err(Error::weights(
                self.weights.path(),
                format!("tensor `{name}` has shape {:?}, expected {parts} equal parts", whole.dims()),
            ));
        }
        // A copy, so that the whole is not kept for the sake of a part.
        Ok(whole.narrow(0, index * rows, rows)?.force_contiguous()?)
    }
}

impl SimpleBackend for Relaid {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(self.read(name, Some(&s), dtype, dev)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        Ok(self.read(name, None, dtype, dev)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains_tensor(&(self.layout)(name).name)
    }
}
