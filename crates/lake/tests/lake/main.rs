//! Stories about the lake, all in one binary: linking the engine once is slow enough.

mod encoders;
mod exactly_once;
mod last_known;
mod limits;
mod other_engines;
mod prepared;
mod psql;
mod read_only;
mod views;
mod world;
