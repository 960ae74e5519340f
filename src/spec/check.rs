//! What must fit together in a study, whatever the disk holds: names that exist, conditions that a method can take.

use super::source::Problems;
use super::users::{Addressee, MEAN_USER, NULL_USER};
use super::{Captions, Conditioning, Labels, Method, Prompts, Role, Spec, claim};
use crate::error::nearest;

impl Spec {
    /// What does not fit together, whatever the disk holds.
    pub(super) fn check(&self, problems: &mut Problems) {
        let study = &self.name;
        let rewards: Vec<&str> = self.profile.rewards.iter().map(String::as_str).collect();
        let sources: Vec<&str> = self.profile.label_sources().collect();
        if self.rewards.users.is_empty() {
            problems.push(format!(
                "{study}: rewards.users is empty, expected at least one of {}",
                rewards.join(", ")
            ));
        }
        for (index, user) in self.rewards.users.iter().enumerate() {
            if !rewards.contains(&user.as_str()) {
                problems.push(unknown(&format!("{study}: rewards.users"), "reward", user, &rewards));
            }
            if self.rewards.users[..index].contains(user) {
                problems.push(format!("{study}: rewards.users: `{user}` stands twice"));
            }
        }
        if let Some(clamp) = self.sample.x0_clamp.filter(|clamp| !(clamp.is_finite() && *clamp > 0.0)) {
            problems.push(format!("{study}: sample.x0_clamp must be a finite number above 0, got {clamp}"));
        }
        if self.sample.guidance_scale.get() <= 1.0 && !self.sample.guidance_steps().is_all() {
            problems.push(format!(
                "{study}: sample.guidance_interval and sample.unconditional_every say when guidance is computed, and \
                 sample.guidance_scale is 1, which is none; leave them out, or set a scale above 1"
            ));
        }
        if self.methods.is_empty() {
            problems.push(format!("{study}: no methods, expected at least one [[methods]]"));
        }
        for method in &self.methods {
            let place = format!("{study}: methods.{}", method.name);
            check_method(method, &place, &self.rewards.users, &rewards, &sources, problems);
            check_people(method, &place, self.users.is_some(), problems);
        }
        if let Some(users) = &self.users {
            users.check(study, &self.methods, problems);
            if users.choices.is_simulated() && !self.profile.artefacts.is_empty() {
                problems.push(format!(
                    "{study}: users.choices are simulated, and simulated people choose between the desk's pictures, not those of \
                     profile `{}`; set users.choices = {{ kind = \"recorded\" }} (in the study's [profiles.{}]), or run it \
                     under `desk`",
                    self.profile.name,
                    self.profile.sections()
                ));
            }
        }
        let held_out = self.users.as_ref().map_or(0, |users| users.held_out);
        if self.data.prompts == Prompts::Own && held_out < self.data.num_prompts {
            problems.push(format!(
                "{study}: data.prompts is `own`, captions of people's own held-out choices, and data.num_prompts asks for {} of \
                 each; users.held_out is {held_out}",
                self.data.num_prompts
            ));
        }
        let conditions: Vec<Vec<String>> = self
            .methods
            .iter()
            .map(|method| method.conditions.iter().map(ToString::to_string).collect())
            .collect();
        let methods: Vec<(&str, &[String])> = self
            .methods
            .iter()
            .zip(&conditions)
            .map(|(method, conditions)| (method.name.as_str(), conditions.as_slice()))
            .collect();
        let scores = self.scores();
        let scores: Vec<&str> = scores.iter().map(String::as_str).collect();
        problems.take(claim::check(&self.claims, &methods, &scores));
    }
}

fn check_method(
    method: &Method,
    place: &str,
    users: &[String],
    rewards: &[&str],
    sources: &[&str],
    problems: &mut Problems,
) {
    if method.name.is_empty() || method.name.contains(['\n', '\r', '/', '\\', '"']) {
        problems.push(format!(
            "{place}: a method's name must not be empty, nor hold slashes, quotes or line breaks"
        ));
    }
    let personal = method.conditioning == Conditioning::OneHot;
    let people = method.is_of_people();
    match (&method.objective, &method.labels) {
        (None, None) if method.conditioning != Conditioning::None => {
            problems.push(format!("{place}: has conditioning but no objective: nothing would train it"));
        }
        (None, Some(_)) => problems.push(format!("{place}: has labels but no objective")),
        (Some(_), None) => problems.push(format!("{place}: has an objective but no labels")),
        (Some(_), Some(_)) if method.conditioning == Conditioning::None => problems.push(format!(
            "{place}: has an objective but conditioning `none`: without user tokens the added layers see nothing; \
             expected `constant` or `one-hot`"
        )),
        _ => {}
    }
    if let Some(labels) = &method.labels {
        if labels.rewards().is_empty() && !matches!(labels, Labels::Raw | Labels::Users) {
            problems.push(format!(
                "{place}: labels.rewards is empty, expected at least one of {}",
                sources.join(", ")
            ));
        }
        for reward in labels.rewards() {
            if !sources.contains(&reward.as_str()) {
                problems.push(unknown(&format!("{place}: labels.rewards"), "reward", reward, sources));
            } else if personal && !users.contains(reward) {
                problems.push(unknown(&format!("{place}: labels.rewards"), "user", reward, &strs(users)));
            }
        }
        if personal && matches!(labels, Labels::Raw | Labels::Users) {
            problems.push(format!(
                "{place}: one-hot conditioning needs labels by rewards, raw labels name no user"
            ));
        }
        if method.role == Role::Specialist && labels.rewards().len() != 1 {
            problems.push(format!("{place}: a specialist is labelled by exactly one reward"));
        }
    }
    if method.conditions.is_empty() {
        problems.push(format!(
            "{place}: conditions is empty, expected `none` or users such as `{}`",
            users.join(", ")
        ));
    }
    for (index, condition) in method.conditions.iter().enumerate() {
        if method.conditions[..index].contains(condition) {
            problems.push(format!("{place}: the condition `{condition}` stands twice"));
        }
        if !condition.is_none() && !personal && !people {
            problems.push(format!(
                "{place}: condition `{condition}`: the method takes no users, expected `none`"
            ));
        }
        for (part, _) in condition.parts().iter().filter(|_| !people) {
            if !users.contains(part) {
                problems.push(unknown(
                    &format!("{place}: condition `{condition}`"),
                    "user",
                    part,
                    &strs(users),
                ));
            }
        }
    }
    for reward in method.paper.keys().filter(|reward| !rewards.contains(&reward.as_str())) {
        problems.push(unknown(&format!("{place}: paper"), "reward", reward, rewards));
    }
    if method.train.warmup_steps > method.train.steps {
        problems.push(format!(
            "{place}: warmup_steps is {}, more than the {} steps of training",
            method.train.warmup_steps, method.train.steps
        ));
    }
}

/// What a method that knows people must say.
fn check_people(method: &Method, place: &str, has_users: bool, problems: &mut Problems) {
    let labels = method.labels.as_ref();
    if !has_users && (method.is_of_people() || labels == Some(&Labels::Users)) {
        problems.push(format!("{place}: asks for people, and the study has no [users]"));
    }
    if method.conditioning.is_of_people() && labels != Some(&Labels::Users) {
        problems.push(format!("{place}: people are told apart by their choices, expected labels `users`"));
    }
    if method.conditioning.is_of_people() && method.captions == Captions::WithProfile {
        problems.push(format!(
            "{place}: captions = \"with-profile\" is for methods whose user branch knows nobody"
        ));
    }
    if !method.is_of_people() {
        return;
    }
    let in_words = method.captions == Captions::WithProfile;
    for condition in method.conditions.iter().filter(|condition| !condition.is_none()) {
        let name = condition.to_string();
        let of_nobody = !in_words && [MEAN_USER, NULL_USER].contains(&name.as_str());
        if !of_nobody && condition.single().and_then(Addressee::parse).is_none() {
            problems.push(format!(
                "{place}: condition `{name}`: expected `none`, `seen-users`, `unseen-users`, `{MEAN_USER}`, `{NULL_USER}` or \
                 users such as `user-3`, `user-3@8` (eight choices) or `user-3@4.1` (four of another block); captions with \
                 profiles know users alone"
            ));
        }
    }
}

pub(super) fn unknown(place: &str, what: &str, name: &str, known: &[&str]) -> String {
    let near = nearest(name, known.iter().copied());
    let suggestion = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("{place}: unknown {what} `{name}`, expected one of {}{suggestion}", known.join(", "))
}

fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}
