//! The calls that are known: which message each takes, and which it gives back.

use anyhow::{Context, Result};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::messages::*;

/// The service of all calls here.
const SERVICE: &str = "runtime.v1.RuntimeService";

pub struct Method {
    name: &'static str,
    encode: fn(&str) -> Result<Vec<u8>>,
    decode: fn(&[u8]) -> Result<String>,
}

impl Method {
    const fn of<Q: Message + DeserializeOwned, A: Message + Serialize + Default>(name: &'static str) -> Self {
        Self { name, encode: encode::<Q>, decode: decode::<A> }
    }

    pub fn named(name: &str) -> Result<&'static Self> {
        METHODS.iter().find(|method| method.name == name).with_context(|| format!("no method {name}"))
    }

    pub fn path(&self) -> String {
        format!("{SERVICE}/{}", self.name)
    }

    /// The request for the wire, from JSON.
    pub fn encode(&self, json: &str) -> Result<Vec<u8>> {
        (self.encode)(json).with_context(|| format!("the request of {}", self.name))
    }

    /// The answer from the wire, as JSON on one line.
    pub fn decode(&self, bytes: &[u8]) -> Result<String> {
        (self.decode)(bytes).with_context(|| format!("the answer of {}", self.name))
    }
}

fn encode<Q: Message + DeserializeOwned>(json: &str) -> Result<Vec<u8>> {
    Ok(serde_json::from_str::<Q>(json)?.encode_to_vec())
}

fn decode<A: Message + Serialize + Default>(bytes: &[u8]) -> Result<String> {
    Ok(serde_json::to_string(&A::decode(bytes)?)?)
}

const METHODS: &[Method] = &[
    Method::of::<Nothing, Version>("Version"),
    Method::of::<Nothing, Status>("Status"),
    Method::of::<RunPodSandbox, PodId>("RunPodSandbox"),
    Method::of::<PodId, Nothing>("StopPodSandbox"),
    Method::of::<PodId, Nothing>("RemovePodSandbox"),
    Method::of::<PodId, PodAnswer>("PodSandboxStatus"),
    Method::of::<ListPods, Pods>("ListPodSandbox"),
    Method::of::<PodId, PodStatsAnswer>("PodSandboxStats"),
    Method::of::<CreateContainer, ContainerId>("CreateContainer"),
    Method::of::<ContainerId, Nothing>("StartContainer"),
    Method::of::<StopContainer, Nothing>("StopContainer"),
    Method::of::<ContainerId, Nothing>("RemoveContainer"),
    Method::of::<ContainerId, ContainerAnswer>("ContainerStatus"),
    Method::of::<ListContainers, Containers>("ListContainers"),
    Method::of::<ContainerId, ContainerStatsAnswer>("ContainerStats"),
    Method::of::<UpdateContainerResources, Nothing>("UpdateContainerResources"),
    Method::of::<ContainerId, Nothing>("ReopenContainerLog"),
    Method::of::<ExecSync, ExecSyncAnswer>("ExecSync"),
    Method::of::<Exec, Url>("Exec"),
    Method::of::<Attach, Url>("Attach"),
    Method::of::<Nothing, ContainerEvent>("GetContainerEvents"),
];
