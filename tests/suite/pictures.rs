//! Pictures of every mode and layout, decoded and made square as Pillow and open_clip do (`tests/reference/pillow_pictures.py`).

use std::collections::BTreeMap;

use base64::Engine as _;
use ppd::image::decode;
use ppd::pixels::{Filter, Image};
use ppd::reward::preprocess::{Preprocessing, Square};
use ppd::rng::stream;
use ppd::units::{Digest, Seed};
use serde::Deserialize;

/// One picture, and the digests of what the references make of it.
#[derive(Debug, Deserialize)]
struct Case {
    size: (usize, usize),
    bytes: String,
    rgb: String,
    square: String,
    first: String,
}

/// The side of the squares.
const SIZE: usize = 12;

fn cases() -> BTreeMap<String, Case> {
    serde_json::from_str(include_str!("../fixtures/rewards/pictures/pillow.json")).unwrap()
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(&self.bytes).unwrap()
    }
}

fn square(image: &Image, kind: Preprocessing) -> String {
    match kind.apply(image, SIZE).unwrap() {
        Square::Bytes(square) => Digest::of(square.rgb()).hex().to_owned(),
        Square::Numbers(_) => panic!("{kind:?} leaves bytes"),
    }
}

#[test]
fn every_picture_has_pillows_bytes_and_open_clips_square() {
    let (mut wrong, mut differing) = (Vec::new(), 0);
    for (name, case) in cases() {
        let image = decode(&case.bytes(), &name).unwrap();
        assert_eq!((image.width(), image.height()), case.size, "{name}");
        let first = Image::new(image.width(), image.height(), image.rgb().to_vec());
        for (what, got, expected) in [
            ("rgb", Digest::of(image.rgb()).hex().to_owned(), &case.rgb),
            ("square", square(&image, Preprocessing::OpenClip), &case.square),
            ("square of the RGB", square(&first, Preprocessing::OpenClip), &case.first),
        ] {
            if got != *expected {
                wrong.push(format!("{name}: {what}"));
            }
        }
        differing += usize::from(case.square != case.first);
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(differing > 20, "in {differing} cases it matters when the RGB is taken");
}

#[test]
fn damaged_jpegs_are_pictures_or_refused_but_nothing_else() {
    let jpegs: Vec<Vec<u8>> = cases()
        .into_iter()
        .filter(|(name, _)| name.starts_with("jpeg"))
        .map(|(_, case)| case.bytes())
        .collect();
    let mut draw = stream(Seed::new(3), "damaged jpegs", 0);
    let (mut refused, mut decoded) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = draw.pick(&jpegs).clone();
        for _ in 0..1 + draw.below(3) {
            let at = draw.below(bytes.len());
            bytes[at] ^= 1 << draw.below(8);
        }
        if draw.chance(0.25) {
            bytes.truncate(draw.below(bytes.len()));
        }
        match decode(&bytes, "damaged.jpg") {
            Ok(image) => {
                decoded += 1;
                assert_eq!(image.rgb().len(), 3 * image.width() * image.height());
            }
            Err(fault) => {
                refused += 1;
                assert!(fault.to_string().contains("damaged.jpg"), "{fault}");
            }
        }
    }
    assert!(refused > 500 && decoded > 500, "{refused} refused, {decoded} decoded");
}

#[test]
fn a_jpeg_that_ends_early_is_refused_wherever_it_ends() {
    for (name, case) in cases().into_iter().filter(|(name, _)| name.starts_with("jpeg 420")) {
        let bytes = case.bytes();
        // The last two bytes are the end's mark, which Pillow does without.
        for end in (0..bytes.len() - 2).step_by(7) {
            assert!(decode(&bytes[..end], &name).is_err(), "{name}, {end} of {} bytes", bytes.len());
        }
        let image = decode(&bytes, &name).unwrap();
        let wide = image.resized(2 * image.width(), image.height(), Filter::Bicubic).unwrap();
        assert_eq!(wide.width(), 2 * image.width());
    }
}
