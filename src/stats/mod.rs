//! Statistics over plain numbers: estimates, bootstrap intervals, proportions, contrasts.
