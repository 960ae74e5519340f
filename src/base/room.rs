//! Whether a base model, and what trains beside it, fits into memory: asked before the first of its files is loaded.

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::prior::free_memory;
use crate::weights::Weights;

/// What is going to be loaded.
pub(super) struct Load<'a> {
    /// Files, which open without being read, each under a name and with the precision it is loaded in.
    pub(super) files: Vec<(&'a str, Weights, DType)>,
    /// The bytes that training an adapter takes, where one is to be trained.
    pub(super) training: Option<u64>,
}

impl Load<'_> {
    /// Refuses what the device cannot hold all together. Activations come to it, and are not counted.
    ///
    /// # Errors
    /// [`Error::Weights`] with each part's size, their sum, and what is free.
    pub(super) fn check(&self, device: &Device) -> Result<()> {
        self.fits_in(free_memory(device))
    }

    fn fits_in(&self, free: Option<u64>) -> Result<()> {
        let sized = self.files.iter().map(|(name, weights, dtype)| {
            (format!("{name} in {}", dtype.as_str()), weights.bytes_in(*dtype))
        });
        let training = self.training.map(|bytes| ("an adapter's training".to_owned(), bytes));
        let parts: Vec<(String, u64)> = sized.chain(training).collect();
        let needed: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        let Some(free) = free.filter(|free| *free < needed) else { return Ok(()) };
        let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
        let parts: Vec<String> =
            parts.iter().map(|(name, bytes)| format!("{name} {}", gigabytes(*bytes))).collect();
        let largest = self.files.iter().max_by_key(|(_, weights, dtype)| weights.bytes_in(*dtype));
        Err(Error::weights(
            largest.map_or("".as_ref(), |(_, weights, _)| weights.path()),
            format!(
                "the model does not fit into memory: {}, together {}, and {} are free; choose a smaller model, a profile in \
                 bf16 or another --device, or end what else runs",
                parts.join(", "),
                gigabytes(needed),
                gigabytes(free)
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{self, Adapter, training_bytes};
    use crate::units::Seed;
    use crate::weights::Trainable;

    #[test]
    fn parts_that_fit_alone_are_refused_together() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stage_c");
        let open = || Weights::open(format!("{fixtures}/prior.safetensors")).unwrap();
        let each = open().bytes_in(DType::F32);
        let files = vec![("denoiser", open(), DType::BF16), ("codec", open(), DType::F32)];
        let load = Load { files, training: Some(1000) };
        let needed = each / 2 + each + 1000;
        load.fits_in(Some(needed)).unwrap();
        load.fits_in(None).unwrap();
        let message = load.fits_in(Some(needed - 1)).unwrap_err().to_string();
        for part in
            ["prior.safetensors", "denoiser in bf16", "codec in f32", "training", "together", "are free"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
        let without = Load { training: None, ..load };
        without.fits_in(Some(needed - 1)).unwrap();
    }
    #[test]
    fn training_takes_four_numbers_for_each_parameter_of_the_blocks() {
        let blocks = [("a".to_owned(), 32), ("b".to_owned(), 48)];
        let config = adapter::Config {
            user_width: 3,
            num_tokens: 2,
            token_width: 8,
            projector_bias: false,
            projector_std: 1.0,
        };
        let trainable = Trainable::new(Seed::new(0));
        Adapter::new(config, &blocks, trainable.builder(&Device::Cpu)).unwrap();
        let vars = trainable.vars();
        let of_blocks = vars.iter().filter(|(name, _)| !name.starts_with("user_projector"));
        let parameters: usize = of_blocks.map(|(_, var)| var.elem_count()).sum();
        assert_eq!(training_bytes(config.token_width, &blocks), 4 * 4 * parameters as u64);
    }
}
