//! A [`Design`] from the experiment file.

use super::study::{Design, Method, Role, Sweep, User};
use crate::error::{Error, Result, nearest};
use crate::spec::{self, Prompts, Spec};

impl Design {
    /// What `spec` asks, in the words that tables need.
    ///
    /// # Errors
    /// Where a method makes images for a user that the study does not have, or an output is unknown.
    pub fn of(spec: &Spec) -> Result<Self> {
        let rewards = &spec.rewards.users;
        let method = |method: &spec::Method| -> Result<Method> {
            let conditions = method
                .conditions
                .iter()
                .map(|condition| {
                    // People are no points between rewards.
                    let weights = match method.is_of_people() {
                        true => vec![0.0; rewards.len()],
                        false => condition.weights(rewards)?,
                    };
                    Ok(User { condition: condition.to_string(), weights })
                })
                .collect::<Result<_>>()?;
            Ok(Method {
                name: method.name.clone(),
                label: method.label.clone(),
                role: role(method),
                conditions,
                paper: method.paper.clone(),
            })
        };
        let methods = spec.methods.iter().map(method).collect::<Result<Vec<_>>>()?;
        let sweep = spec.sweep.as_ref().map(|sweep| Sweep {
            method: sweep.method.clone(),
            keys: sweep.axes.keys().cloned().collect(),
            points: methods
                .iter()
                .filter_map(|method| Some((method.name.clone(), sweep.values_of(&method.name)?)))
                .collect(),
            rewards: raised(spec, sweep),
        });
        let known = || super::OUTPUTS.iter().map(|entry| entry.name);
        for name in spec.outputs.iter().flatten() {
            if !known().any(|known| known == name) {
                let meant = nearest(name, known())
                    .map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
                let known = known().collect::<Vec<_>>().join(", ");
                return Err(Error::Spec(format!(
                    "{}: outputs: unknown output `{name}`, expected one of {known}{meant}",
                    spec.name
                )));
            }
        }
        Ok(Self {
            study: spec.name.clone(),
            title: spec.title.clone(),
            profile: spec.label.clone(),
            rewards: rewards.clone(),
            methods,
            claims: spec.claims.clone(),
            sweep,
            outputs: spec.outputs.clone(),
            people: spec.users.clone(),
            own_prompts: (spec.data.prompts == Prompts::Own).then_some(spec.data.num_prompts),
            noise_seeds: spec.data.noise_seeds.get().iter().map(|seed| seed.get()).collect(),
        })
    }
}

/// The users' rewards that label the pairs of a sweep's method; all where the labels are raw or measured.
fn raised(spec: &Spec, sweep: &spec::Sweep) -> Vec<String> {
    let users = &spec.rewards.users;
    let points = spec.methods.iter().filter(|method| sweep.values_of(&method.name).is_some());
    let labels: Vec<&String> =
        points.filter_map(|method| method.labels.as_ref()).flat_map(spec::Labels::rewards).collect();
    let raised: Vec<String> = users.iter().filter(|user| labels.contains(user)).cloned().collect();
    if raised.is_empty() { users.clone() } else { raised }
}

fn role(method: &spec::Method) -> Role {
    match method.role {
        spec::Role::Base => Role::Base,
        spec::Role::Personal => Role::Personal,
        spec::Role::Baseline => Role::Baseline,
        spec::Role::Control => Role::Control,
        // A specialist is named after the one reward that labels its pairs; without one it is a baseline.
        spec::Role::Specialist => match method.labels.as_ref().map(spec::Labels::rewards) {
            Some([reward]) => Role::Specialist(reward.clone()),
            _ => Role::Baseline,
        },
    }
}
