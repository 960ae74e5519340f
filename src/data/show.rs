//! Pairs for people to look at: both pictures side by side, the chosen one framed, and who chose beneath.

use std::path::Path;

use crate::data::labels::reward_choices;
use crate::data::scores::Scores;
use crate::data::{Choice, Preference};
use crate::error::Result;
use crate::image::{Cell, Sheet};
use crate::pixels::Image;

/// The frame around the picture that the raw label chooses, around the other, and around both of a tie.
const CHOSEN: [u8; 3] = [46, 160, 67];
const REJECTED: [u8; 3] = [208, 208, 208];
const TIE: [u8; 3] = [214, 158, 46];

/// A contact sheet of the pairs at `places`, `across` pairs side by side.
///
/// Under the first picture of a pair stands its caption; under the second who made the raw choice, and which side
/// each reward in `scores` chooses. `origin` is the dataset's path, for messages.
///
/// # Errors
/// [`Error::Data`](crate::error::Error::Data) where a picture is not there or cannot be decoded;
/// [`Error::Shape`](crate::error::Error::Shape) where there is nothing to show.
pub fn sheet(
    pairs: &[Preference],
    scores: Option<&Scores>,
    places: &[usize],
    across: usize,
    origin: impl AsRef<Path>,
) -> Result<Image> {
    let mut pictures = Vec::with_capacity(2 * places.len());
    let mut captions = Vec::with_capacity(2 * places.len());
    let mut frames = Vec::with_capacity(2 * places.len());
    for &place in places {
        let pair = &pairs[place];
        let choice = pair.choice();
        for side in 0..2 {
            pictures.push(pair.image(side, origin.as_ref())?);
            frames.push(match choice {
                Some(Choice::Side(chosen)) => Some(if chosen == side { CHOSEN } else { REJECTED }),
                Some(Choice::Tie) => Some(TIE),
                None => None,
            });
        }
        captions.push(pair.caption.clone());
        captions.push(verdicts(pair, choice, scores, place)?);
    }
    let side = pictures.iter().map(Image::width).max().unwrap_or(1);
    // A picture is shown at some 190 pixels, in which 31 characters of a caption find place.
    let sheet =
        Sheet { columns: 2 * across, scale: 190_usize.div_ceil(side).max(1), text: 1, ..Sheet::default() };
    let cells: Vec<Cell> = pictures
        .iter()
        .zip(captions)
        .zip(frames)
        .map(|((image, caption), frame)| Cell { image, caption: Some(caption), frame })
        .collect();
    sheet.draw(&cells)
}

/// Who chooses which side, in words: `user 12: left`, and one line of rewards for each side.
fn verdicts(
    pair: &Preference,
    choice: Option<Choice>,
    scores: Option<&Scores>,
    place: usize,
) -> Result<String> {
    let word = |choice: Option<Choice>| match choice {
        Some(Choice::Side(0)) => "left",
        Some(Choice::Side(_)) => "right",
        Some(Choice::Tie) => "tie",
        None => "no label",
    };
    let user = pair.user_id.map_or_else(|| "raw".into(), |user| format!("user {user}"));
    let mut lines = vec![format!("{user}: {}", word(choice))];
    if let Some(scores) = scores {
        for (side, name) in [(Choice::Side(0), "left"), (Choice::Side(1), "right"), (Choice::Tie, "tie")] {
            let mut rewards = Vec::new();
            for reward in scores.rewards() {
                if reward_choices(scores, reward)?.get(place).copied().flatten() == Some(side) {
                    rewards.push(reward.as_str());
                }
            }
            if !rewards.is_empty() {
                lines.push(format!("{name}: {}", rewards.join(" ")));
            }
        }
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Format, encode};

    fn pair(label: [f64; 2]) -> Preference {
        let flat =
            |colour: [u8; 3]| encode(&Image::new(64, 64, colour.repeat(64 * 64)), Format::Png).unwrap();
        Preference {
            caption: "a large red circle left of a small blue square on a white background".into(),
            images: Some([flat([255, 0, 0]), flat([0, 0, 255])]),
            label: Some(label),
            user_id: Some(12),
            ..Preference::default()
        }
    }

    #[test]
    fn the_chosen_picture_is_framed_and_every_reward_named() {
        let pairs = [pair([0.0, 1.0]), pair([0.5, 0.5])];
        let mut scores = Scores::new();
        scores.insert("clip", vec![[1.0, 0.0], [1.0, 1.0]]).unwrap();
        scores.insert("hps", vec![[2.0, 0.0], [0.0, 1.0]]).unwrap();
        let drawn = sheet(&pairs, Some(&scores), &[0], 1, "pairs").unwrap();
        let second = 8 + 200 + 8;
        assert_eq!((drawn.at(8, 8), drawn.at(second, 8)), (REJECTED, CHOSEN));
        assert_eq!((drawn.at(12, 12), drawn.at(second + 4, 12)), ([255, 0, 0], [0, 0, 255]));
        let tie = sheet(&pairs, Some(&scores), &[1], 1, "pairs").unwrap();
        assert_eq!((tie.at(8, 8), tie.at(second, 8)), (TIE, TIE));
        let words =
            |place: usize| verdicts(&pairs[place], pairs[place].choice(), Some(&scores), place).unwrap();
        assert_eq!(words(0), "user 12: right\nleft: clip hps");
        assert_eq!(words(1), "user 12: tie\nright: hps\ntie: clip");
    }

    #[test]
    fn nothing_to_show_and_absent_pictures_are_errors() {
        assert!(sheet(&[], None, &[], 2, "pairs").is_err());
        let bare = Preference { images: None, ..pair([1.0, 0.0]) };
        assert!(sheet(&[bare], None, &[0], 2, "pairs").is_err());
    }
}
