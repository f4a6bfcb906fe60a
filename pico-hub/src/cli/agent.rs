//! `pico agent ...`

use pico_proto::v1;
use pico_proto::v1::agent_service_client::AgentServiceClient;

use super::app::PAGE;
use super::args::AgentCommand;
use super::connect::Hub;
use super::exit::Exit;
use super::failure::{Failure, Result};
use super::{Context, call, confirm, token, view};

pub(super) async fn run(context: &Context, command: AgentCommand) -> Result<Exit> {
    let mut client = AgentServiceClient::new(context.hub.clone());
    match command {
        AgentCommand::List => {
            let agents = list(&mut client).await?;
            context.print(&view::agents(&agents))
        }
        AgentCommand::Show { agent } => {
            let agent = find(&mut client, &agent).await?;
            context.print(&view::agent(&agent))
        }
        AgentCommand::Remove { agent, yes } => {
            let known = find(&mut client, &agent).await?;
            confirm(&format!("remove agent {}", known.name), yes)?;
            client
                .remove_agent(call(v1::RemoveAgentRequest { id: known.id }))
                .await?;
            context.print(&view::removed("agent", &known.name))
        }
        AgentCommand::JoinToken { lifetime } => {
            token::create(context, v1::Role::Join, String::new(), lifetime, String::new()).await
        }
    }
}

async fn list(client: &mut AgentServiceClient<Hub>) -> Result<Vec<v1::Agent>> {
    let mut agents = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListAgentsRequest {
            page_size: PAGE,
            page_token,
        };
        let page = client.list_agents(call(request)).await?.into_inner();
        agents.extend(page.agents);
        if page.next_page_token.is_empty() {
            return Ok(agents);
        }
        page_token = page.next_page_token;
    }
}

/// The one agent with this name or id.
async fn find(client: &mut AgentServiceClient<Hub>, called: &str) -> Result<v1::Agent> {
    let agents = list(client).await?;
    let mut fitting = agents
        .into_iter()
        .filter(|agent| agent.id == called || agent.name == called);
    match (fitting.next(), fitting.next()) {
        (Some(agent), None) => Ok(agent),
        (None, _) => {
            let told = format!("there is no agent '{called}'");
            Err(Failure::new("NOT_FOUND", Exit::NOT_FOUND, told).hint("pico agent list"))
        }
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several agents are called '{called}'")).hint("its id instead"))
        }
    }
}
