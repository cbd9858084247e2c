//! Pools: the engine's side of the layout that lies on their backends.

use super::backends::Live;
use super::cores::Cores;
use super::topology::Placed;
use super::view::PoolView;
use crate::error::{Fault, Refusal};
use crate::state::State;
use std::collections::BTreeMap;
use trefoil_config::{Lun, Pool};

/// All pools that are up.
#[derive(Debug, Default)]
pub struct Pools {}

type Lives = BTreeMap<String, Live>;

fn none() -> Refusal {
    Refusal::new(Fault::Invalid, "this build has no pools")
}

impl Pools {
    pub async fn create(&mut self, _: &Cores, _: &Pool, _: &Lives, _: bool) -> Result<(), Refusal> {
        Err(none())
    }
    pub async fn open(&mut self, _: &Cores, _: &Pool, _: &Lives) -> Result<(), Refusal> {
        Err(none())
    }
    pub async fn delete(&mut self, _: &Cores, _: &Lives, _: &str) -> Result<(), Refusal> {
        Err(none())
    }
    pub fn adopt_into(&self, _: &mut State) {}
    pub async fn create_lun(&mut self, _: &Cores, _: &Lives, _: &Lun) -> Result<Placed, Refusal> {
        Err(none())
    }
    pub async fn grow_lun(&mut self, _: &Cores, _: &Lives, _: &Lun) -> Result<Placed, Refusal> {
        Err(none())
    }
    pub async fn delete_lun(&mut self, _: &Cores, _: &Lives, _: &Lun) -> Result<(), Refusal> {
        Err(none())
    }
    pub fn place(&self, _: &Lun) -> Result<Placed, String> {
        Err("this build has no pools".into())
    }
    pub fn views(&self) -> BTreeMap<String, PoolView> {
        BTreeMap::new()
    }
}
