//! `pico app ...`

use std::io;

use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use tonic::Code;

use super::args::{AppCommand, Change, Condition, Depth};
use super::connect::Hub;
use super::exit::Exit;
use super::failure::{Failure, Result};
use super::handle::App;
use super::output::write_out;
use super::{Context, call, confirm, exec, patiently, request_id, spec, view, within};

/// Apps asked for at a time.
pub(super) const PAGE: u32 = 1_000;

pub(super) async fn run(context: &Context, command: AppCommand) -> Result<Exit> {
    let mut client = AppServiceClient::new(context.hub.clone());
    let owner = context.owner.as_deref();
    match command {
        AppCommand::Create {
            name,
            options,
            waiting,
        } => {
            let (spec, _) = spec::from_options(&name, *options)?;
            let begun = client.create_app(call(v1::CreateAppRequest {
                request_id: request_id(),
                owner: owner.unwrap_or_default().to_owned(),
                spec: Some(spec),
                validate_only: false,
            }));
            context.finish(begun.await?.into_inner(), &name, &waiting).await
        }
        AppCommand::List => {
            let apps = list(&mut client, owner).await?;
            context.print(&view::apps(&apps, context.output.wide))
        }
        AppCommand::Show(app) => {
            let app = get(&mut client, &app, owner).await?;
            context.print(&view::app(&app))
        }
        AppCommand::Status(app) => {
            let app = get(&mut client, &app, owner).await?;
            if !context.output.quiet || context.output.json {
                context.print(&view::status(&app))?;
            }
            Ok(match app.state() {
                v1::AppState::Hot => Exit::OK,
                _ => Exit::WRONG_STATE,
            })
        }
        AppCommand::Update {
            name,
            options,
            waiting,
        } => {
            let (spec, paths) = spec::from_options(&name, *options)?;
            if paths.is_empty() {
                return Err(Failure::usage("nothing is to be changed").hint("pico app update --help"));
            }
            let begun = client.update_app(call(v1::UpdateAppRequest {
                app: Some(v1::AppHandle {
                    id: String::new(),
                    owner: owner.unwrap_or_default().to_owned(),
                    name: name.clone(),
                }),
                spec: Some(spec),
                update_mask: Some(prost_types::FieldMask { paths }),
                resource_version: 0,
                validate_only: false,
                request_id: request_id(),
            }));
            context.finish(begun.await?.into_inner(), &name, &waiting).await
        }
        AppCommand::Start(change) => {
            let app = Some(change.app.read(owner)?);
            let begun = client.start_app(call(v1::StartAppRequest { app })).await?;
            finish(context, begun.into_inner(), &change).await
        }
        AppCommand::Stop(change) => {
            let app = Some(change.app.read(owner)?);
            let begun = client.stop_app(call(v1::StopAppRequest { app })).await?;
            finish(context, begun.into_inner(), &change).await
        }
        AppCommand::Restart(change) => {
            let app = Some(change.app.read(owner)?);
            let begun = client.restart_app(call(v1::RestartAppRequest { app })).await?;
            finish(context, begun.into_inner(), &change).await
        }
        AppCommand::Wake(change) => {
            let app = Some(change.app.read(owner)?);
            let begun = client.wake_app(call(v1::WakeAppRequest { app })).await?;
            finish(context, begun.into_inner(), &change).await
        }
        AppCommand::Sleep { change, to } => {
            let app = Some(change.app.read(owner)?);
            let to = match to {
                Depth::Warm => v1::AppState::Warm,
                Depth::Cold => v1::AppState::Cold,
                Depth::Dozing => {
                    let told = "apps cannot doze yet: their process is always given up";
                    return Err(Failure::new("UNSUPPORTED", Exit::PRECONDITION, told).hint("--to warm"));
                }
            };
            let begun = client
                .sleep_app(call(v1::SleepAppRequest { app, to: to.into() }))
                .await?;
            finish(context, begun.into_inner(), &change).await
        }
        AppCommand::Delete { change, yes } => {
            let app = Some(change.app.read(owner)?);
            confirm(&format!("delete {} and its checkpoints", change.app.text()), yes)?;
            let begun = client.delete_app(call(v1::DeleteAppRequest {
                app,
                resource_version: 0,
                request_id: request_id(),
            }));
            finish(context, begun.await?.into_inner(), &change).await
        }
        AppCommand::Wait {
            app,
            state,
            wait_timeout,
        } => {
            let handle = app.read(owner)?;
            let waited = patiently(wait_timeout, |deadline| {
                let request = v1::WaitAppRequest {
                    app: Some(handle.clone()),
                    condition: condition(state).into(),
                };
                let mut client = client.clone();
                async move { client.wait_app(within(request, deadline)).await }
            });
            match waited.await {
                Ok(app) => context.print(&view::status(&app)),
                Err(status) if status.code() == Code::DeadlineExceeded => {
                    let told = format!("{} is not so after {wait_timeout}", app.text());
                    Err(Failure::new("TIMEOUT", Exit::TIMEOUT, told)
                        .hint(format!("pico app explain {}", app.text())))
                }
                Err(status) => Err(status.into()),
            }
        }
        AppCommand::Explain(app) => {
            let app = Some(app.read(owner)?);
            let explained = client.explain_app(call(v1::ExplainAppRequest { app })).await?;
            context.print(&view::explain(explained.get_ref()))
        }
        AppCommand::Logs {
            app,
            lines,
            follow,
            stream,
        } => {
            let request = v1::ReadLogsRequest {
                app: Some(app.read(owner)?),
                lines,
                follow,
                stream: stream.unwrap_or_default(),
            };
            logs(context, &mut client, request).await
        }
        AppCommand::Exec {
            app,
            user,
            workdir,
            command,
        } => {
            let start = v1::exec_request::Start {
                app: Some(app.read(owner)?),
                command,
                user,
                workdir,
                env: std::collections::BTreeMap::new(),
            };
            exec::run(&mut client, start).await
        }
    }
}

async fn finish(context: &Context, begun: v1::Operation, change: &Change) -> Result<Exit> {
    context.finish(begun, &change.app.text(), &change.waiting).await
}

async fn get(client: &mut AppServiceClient<Hub>, app: &App, owner: Option<&str>) -> Result<v1::App> {
    let app = Some(app.read(owner)?);
    Ok(client
        .get_app(call(v1::GetAppRequest { app }))
        .await?
        .into_inner())
}

async fn list(client: &mut AppServiceClient<Hub>, owner: Option<&str>) -> Result<Vec<v1::App>> {
    let mut apps = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListAppsRequest {
            page_size: PAGE,
            page_token,
            owner: owner.unwrap_or_default().to_owned(),
            states: Vec::new(),
        };
        let page = client.list_apps(call(request)).await?.into_inner();
        apps.extend(page.apps);
        if page.next_page_token.is_empty() {
            return Ok(apps);
        }
        page_token = page.next_page_token;
    }
}

async fn logs(
    context: &Context,
    client: &mut AppServiceClient<Hub>,
    request: v1::ReadLogsRequest,
) -> Result<Exit> {
    let follow = request.follow;
    let mut lines = client.read_logs(request).await?.into_inner();
    let mut kept = Vec::new();
    while let Some(line) = lines.message().await? {
        match (context.output.json, follow) {
            (true, true) => context.output.print_document(&view::log_line(&line))?,
            (true, false) => kept.push(view::log_line(&line)["line"].clone()),
            (false, _) => {
                let bytes = [&line.text[..], b"\n"].concat();
                match line.stream.as_str() {
                    "stderr" => write_out(&mut io::stderr().lock(), &bytes)?,
                    _ => write_out(&mut io::stdout().lock(), &bytes)?,
                }
            }
        }
    }
    if context.output.json && !follow {
        context
            .output
            .print_document(&serde_json::json!({ "lines": kept }))?;
    }
    Ok(Exit::OK)
}

fn condition(state: Condition) -> v1::wait_app_request::Condition {
    use v1::wait_app_request::Condition as Asked;
    match state {
        Condition::Settled => Asked::Settled,
        Condition::Hot => Asked::Hot,
        Condition::Asleep => Asked::Asleep,
        Condition::Cold => Asked::Cold,
        Condition::Stopped => Asked::Stopped,
    }
}
