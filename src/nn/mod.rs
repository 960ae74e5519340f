//! What candle lacks, forward and backward.
