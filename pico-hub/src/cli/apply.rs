//! `pico apply -f app.toml`: register an app, or change it, or leave it.

use std::path::Path;

use pico_proto::v1;
use pico_proto::v1::app_service_client::AppServiceClient;
use tonic::Code;

use super::args::Waiting;
use super::exit::Exit;
use super::failure::Result;
use super::{Context, call, read_file, request_id, spec, view};

pub(super) async fn run(context: &Context, file: &Path, dry_run: bool, waiting: &Waiting) -> Result<Exit> {
    let text = read_file(file, spec::FILE_BYTES)?;
    let wanted = spec::from_toml(file.display(), &text)?;
    let name = wanted.name.clone();
    let owner = context.owner.clone().unwrap_or_default();
    let mut client = AppServiceClient::new(context.hub.clone());
    let handle = v1::AppHandle {
        id: String::new(),
        owner: owner.clone(),
        name: name.clone(),
    };
    let asked = client.get_app(call(v1::GetAppRequest {
        app: Some(handle.clone()),
    }));
    let (did, begun) = match asked.await {
        Ok(known) if known.get_ref().spec.as_ref() == Some(&wanted) => ("nothing", None),
        Ok(known) => {
            let request = v1::UpdateAppRequest {
                app: Some(handle),
                spec: Some(wanted),
                // All that the file has, and defaults for the rest.
                update_mask: None,
                resource_version: known.get_ref().resource_version,
                validate_only: dry_run,
                request_id: request_id(),
            };
            (
                "update",
                Some(client.update_app(call(request)).await?.into_inner()),
            )
        }
        Err(status) if status.code() == Code::NotFound => {
            let request = v1::CreateAppRequest {
                request_id: request_id(),
                owner,
                spec: Some(wanted),
                validate_only: dry_run,
            };
            (
                "create",
                Some(client.create_app(call(request)).await?.into_inner()),
            )
        }
        Err(status) => return Err(status.into()),
    };
    if let Some(begun) = begun.filter(|_| !dry_run) {
        let operation = context.settle(begun, waiting).await?;
        if !operation.done {
            return context.print(&view::operation(&operation, &name));
        }
    }
    context.print(&view::applied(&name, did, dry_run))?;
    Ok(match dry_run && did != "nothing" {
        true => Exit::FAILURE,
        false => Exit::OK,
    })
}
