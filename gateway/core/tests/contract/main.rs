//! The contract of `sluice-core`, checked from outside: from inputs and outputs alone, against a naive model.

mod support;

mod interleavings;
mod planted_bugs;
mod properties;
mod scripts;
mod simulation;
