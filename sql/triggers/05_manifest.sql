-- What `ebbtide migrate` made: with it `migrate`, `status`, `verify` and every start compare what is there.
create table if not exists schema_manifest (
    object text collate "C" not null,
    definition text not null,
    constraint schema_manifest_pkey primary key (object)
);
comment on table schema_manifest is 'Internal: what this schema was made of; what is missing or another by now is named at every start.';
